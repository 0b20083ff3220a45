//! How many connections each address has, and how many handshakes it may still begin.
//!
//! An address is one IPv4 address or one /64 of IPv6: what a provider gives to one customer at least
//! (RFC 6177), so nobody has more of them for nothing. An entry lasts as long as it says something that
//! a new one would not: it has connections, or its bucket is not full.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::admission::rate::{Rate, TokenBucket};

/// Fewer entries than this are not worth giving memory back for.
const MIN_CAPACITY: usize = 1_024;

/// What counts as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKey {
    /// One address.
    V4(Ipv4Addr),
    /// The upper 64 bits of a /64.
    V6(u64),
}

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// What is allowed. `None` allows everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one address at a time, those in their handshake included.
    pub connections_per_address: Option<u32>,
    /// Handshakes of one address.
    pub handshakes_per_address: Option<Rate>,
    /// Handshakes of all together.
    pub handshakes: Option<Rate>,
}

impl Limits {
    /// There is something to be counted for each address.
    pub fn are_by_address(&self) -> bool {
        self.connections_per_address.is_some() || self.handshakes_per_address.is_some()
    }
}

/// Why somebody may not come in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This address has as many connections as it may have.
    AddressConnections,
    /// This address has begun as many handshakes as it may; the next one in so long.
    AddressHandshakes(Duration),
    /// All together have begun as many as they may; the next one in so long.
    Handshakes(Duration),
    /// The table is full of addresses with connections.
    TableFull,
}

#[derive(Debug)]
struct Entry {
    connections: u32,
    /// There is one while handshakes are limited.
    handshakes: Option<TokenBucket>,
    /// It is in the list of those that may be forgotten some time.
    is_listed: bool,
}

/// The table, and the bucket of all together.
#[derive(Debug)]
pub struct Addresses {
    /// Hashed with a key that nobody outside knows.
    entries: HashMap<AddressKey, Entry>,
    max_entries: usize,
    handshakes: Option<TokenBucket>,
    /// Addresses without connections and when to look at them again, the earliest first, each once at
    /// most. Some have connections again.
    idle: VecDeque<(Instant, AddressKey)>,
}

impl Addresses {
    /// A table that never has more than `max_entries` entries.
    pub fn new(max_entries: usize) -> Self {
        Self { entries: HashMap::new(), max_entries, handshakes: None, idle: VecDeque::new() }
    }

    /// From now on it has no more than `max_entries`, but for those that it has.
    pub fn set_max_entries(&mut self, max_entries: usize) {
        self.max_entries = max_entries;
    }

    /// How many addresses are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// None is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// From now on `limits` hold: who has nothing to say by them is forgotten, also where nobody comes
    /// any more who would have that looked at.
    pub fn handle_new_limits(&mut self, limits: &Limits, now: Instant) {
        let latest = now + idle_time(limits);
        self.idle.iter_mut().for_each(|(due, _)| *due = latest.min(*due));
        self.forget_idle(limits, now);
    }

    /// Counts a connection of `address`, whose handshake begins, or of nobody whom it is counted for.
    /// Whoever is counted has to [`Addresses::leave`].
    ///
    /// # Errors
    ///
    /// It may not come in now. Then nothing is counted.
    pub fn try_enter(
        &mut self,
        address: Option<AddressKey>,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Refused> {
        self.forget_idle(limits, now);
        let mut of_all = limits
            .handshakes
            .map(|rate| (self.handshakes.unwrap_or_else(|| TokenBucket::full(rate, now)), rate));
        let all = of_all.as_mut().map_or(Ok(()), |(bucket, rate)| bucket.try_take(*rate, now));
        // That of the address first: whoever has used up their own share takes nothing from the others.
        if let Some(key) = address.filter(|_| limits.are_by_address()) {
            self.try_enter_address(key, limits, now, all.is_ok())?;
        }
        all.map_err(Refused::Handshakes)?;
        self.handshakes = of_all.map(|(bucket, _)| bucket);
        Ok(())
    }

    /// Counts for `key`, if it `may_come_in` as far as the others are concerned.
    fn try_enter_address(
        &mut self,
        key: AddressKey,
        limits: &Limits,
        now: Instant,
        may_come_in: bool,
    ) -> Result<(), Refused> {
        let known = self.entries.get(&key);
        let connections = known.map_or(0, |entry| entry.connections);
        if limits.connections_per_address.is_some_and(|most| connections >= most) {
            return Err(Refused::AddressConnections);
        }
        let mut handshakes = limits.handshakes_per_address.map(|rate| {
            let known = known.and_then(|entry| entry.handshakes);
            (known.unwrap_or_else(|| TokenBucket::full(rate, now)), rate)
        });
        if let Some((bucket, rate)) = &mut handshakes {
            bucket.try_take(*rate, now).map_err(Refused::AddressHandshakes)?;
        }
        if !may_come_in {
            return Ok(());
        }
        if known.is_none() && self.entries.len() >= self.max_entries && !self.forget_one() {
            return Err(Refused::TableFull);
        }
        let new = Entry { connections: 0, handshakes: None, is_listed: false };
        let entry = self.entries.entry(key).or_insert(new);
        entry.connections += 1;
        entry.handshakes = handshakes.map(|(bucket, _)| bucket);
        Ok(())
    }

    /// A connection of `address` that was counted has ended.
    pub fn leave(&mut self, address: AddressKey, limits: &Limits, now: Instant) {
        let Some(entry) = self.entries.get_mut(&address) else {
            debug_assert!(false, "whoever leaves has entered");
            return;
        };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections == 0 && !std::mem::replace(&mut entry.is_listed, true) {
            self.idle.push_back((now + idle_time(limits), address));
        }
        self.forget_idle(limits, now);
    }

    /// Forgets those of whom nothing is left to be said at `now`.
    fn forget_idle(&mut self, limits: &Limits, now: Instant) {
        // Each look takes one off the list, and each leaving puts one on it at most.
        let mut listed = self.idle.len();
        while let Some(&(due, key)) = self.idle.front()
            && due <= now
            && listed > 0
        {
            listed -= 1;
            self.idle.pop_front();
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.is_listed = false;
            if entry.connections > 0 {
                continue;
            }
            let is_full = match (&mut entry.handshakes, limits.handshakes_per_address) {
                (Some(bucket), Some(rate)) => bucket.is_full(rate, now),
                (Some(_) | None, None) | (None, Some(_)) => true,
            };
            if is_full {
                self.forget(key);
            } else {
                entry.is_listed = true;
                self.idle.push_back((now + idle_time(limits), key));
            }
        }
    }

    /// Makes room: forgets whoever has been without a connection for longest, though their bucket is not
    /// full. Returns whether there was one.
    fn forget_one(&mut self) -> bool {
        while let Some((_, key)) = self.idle.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.is_listed = false;
            if entry.connections == 0 {
                self.forget(key);
                return true;
            }
        }
        false
    }

    fn forget(&mut self, key: AddressKey) {
        self.entries.remove(&key);
        let (len, capacity) = (self.entries.len(), self.entries.capacity());
        if capacity > MIN_CAPACITY && len < capacity / 4 {
            self.entries.shrink_to(capacity / 2);
            self.idle.shrink_to(capacity / 2);
        }
    }
}

/// How long an entry without connections has something to say, at most.
fn idle_time(limits: &Limits) -> Duration {
    limits.handshakes_per_address.map_or(Duration::ZERO, Rate::refill_time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> AddressKey {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn number(number: u32) -> AddressKey {
        AddressKey::V4(Ipv4Addr::from_bits(number))
    }

    fn connections(most: u32) -> Limits {
        Limits { connections_per_address: Some(most), ..Limits::default() }
    }

    fn handshakes(rate: Rate) -> Limits {
        Limits { handshakes_per_address: Some(rate), ..Limits::default() }
    }

    #[test]
    fn address_is_one_of_ipv4_or_a_64_of_ipv6() {
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }

    #[test]
    fn address_has_no_more_connections_than_it_may_and_others_do_not_notice() {
        let (mut table, now, limits) = (Addresses::new(10), Instant::now(), connections(2));
        for _ in 0..2 {
            assert_eq!(table.try_enter(Some(number(1)), &limits, now), Ok(()));
        }
        let refused = Err(Refused::AddressConnections);
        assert_eq!(table.try_enter(Some(number(1)), &limits, now), refused);
        assert_eq!(table.try_enter(Some(number(2)), &limits, now), Ok(()));
        assert_eq!(table.try_enter(None, &limits, now), Ok(()));
        table.leave(number(1), &limits, now);
        assert_eq!(table.try_enter(Some(number(1)), &limits, now), Ok(()));
        assert_eq!(table.try_enter(Some(number(1)), &limits, now), refused);
        for left in [1, 1, 2] {
            table.leave(number(left), &limits, now);
        }
        assert!(table.is_empty());
    }

    #[test]
    fn handshakes_of_an_address_are_limited_though_its_connections_end() {
        let (mut table, start) = (Addresses::new(10), Instant::now());
        let limits = handshakes(Rate::new(10, 3));
        for _ in 0..3 {
            assert_eq!(table.try_enter(Some(number(1)), &limits, start), Ok(()));
            table.leave(number(1), &limits, start);
        }
        let wait = Duration::from_millis(100);
        let refused = Err(Refused::AddressHandshakes(wait));
        assert_eq!(table.try_enter(Some(number(1)), &limits, start), refused);
        assert_eq!(table.try_enter(Some(number(2)), &limits, start), Ok(()));
        assert_eq!(table.try_enter(Some(number(1)), &limits, start + wait), Ok(()));
        table.leave(number(1), &limits, start + wait);
        table.leave(number(2), &limits, start + wait);
        // Its bucket is full again after 300 ms.
        assert_eq!(table.len(), 2);
        assert_eq!(table.try_enter(None, &limits, start + Duration::from_secs(1)), Ok(()));
        assert!(table.is_empty());
    }

    #[test]
    fn idle_addresses_are_forgotten_where_limits_are_taken_away() {
        let (mut table, now) = (Addresses::new(10), Instant::now());
        let limits = handshakes(Rate::new(1, 3));
        for address in 0..3 {
            assert_eq!(table.try_enter(Some(number(address)), &limits, now), Ok(()));
        }
        table.leave(number(1), &limits, now);
        table.leave(number(2), &limits, now);
        assert_eq!(table.len(), 3);
        table.handle_new_limits(&limits, now);
        assert_eq!(table.len(), 3);
        table.handle_new_limits(&Limits::default(), now);
        assert_eq!(table.len(), 1, "that which has a connection");
        table.leave(number(0), &Limits::default(), now);
        assert!(table.is_empty());
    }

    #[test]
    fn whoever_has_used_up_their_share_takes_nothing_from_the_others() {
        let (mut table, now) = (Addresses::new(10), Instant::now());
        let limits = Limits {
            connections_per_address: Some(2),
            handshakes: Some(Rate::new(1, 4)),
            ..Limits::default()
        };
        for _ in 0..2 {
            assert_eq!(table.try_enter(Some(number(1)), &limits, now), Ok(()));
        }
        for _ in 0..100 {
            let refused = Err(Refused::AddressConnections);
            assert_eq!(table.try_enter(Some(number(1)), &limits, now), refused);
        }
        assert_eq!(table.try_enter(Some(number(2)), &limits, now), Ok(()));
        assert_eq!(table.try_enter(None, &limits, now), Ok(()));
        let refused = Err(Refused::Handshakes(Duration::from_secs(1)));
        assert_eq!(table.try_enter(Some(number(3)), &limits, now), refused);
        assert_eq!(table.try_enter(None, &limits, now), refused);
        assert_eq!(table.len(), 2, "nothing is kept of those who were refused");
    }

    #[test]
    fn table_of_one_hundred_thousand_addresses_stays_within_its_bound() {
        const MOST: usize = 1_000;
        let (mut table, start) = (Addresses::new(MOST), Instant::now());
        // So slow that no bucket is full again.
        let limits = handshakes(Rate::new(1, 1_000_000));
        for address in 0..100_000 {
            let now = start + Duration::from_micros(address.into());
            assert_eq!(table.try_enter(Some(number(address)), &limits, now), Ok(()));
            table.leave(number(address), &limits, now);
            assert!(table.len() <= MOST && table.idle.len() <= MOST);
            assert!(table.entries.capacity() <= 4 * MOST, "{}", table.entries.capacity());
        }
        assert_eq!(table.len(), MOST);
        let later = start + Duration::from_secs(10_000_000);
        assert_eq!(table.try_enter(None, &limits, later), Ok(()));
        assert!(table.is_empty() && table.idle.is_empty());
        assert!(table.entries.capacity() <= MIN_CAPACITY * 2, "{}", table.entries.capacity());
    }

    #[test]
    fn addresses_with_connections_are_never_forgotten_for_new_ones() {
        let (mut table, now, limits) = (Addresses::new(3), Instant::now(), connections(1));
        for address in 0..3 {
            assert_eq!(table.try_enter(Some(number(address)), &limits, now), Ok(()));
        }
        for address in 3..1_000 {
            let refused = Err(Refused::TableFull);
            assert_eq!(table.try_enter(Some(number(address)), &limits, now), refused);
        }
        for address in 0..3 {
            let refused = Err(Refused::AddressConnections);
            assert_eq!(table.try_enter(Some(number(address)), &limits, now), refused);
        }
        table.leave(number(0), &limits, now);
        assert_eq!(table.try_enter(Some(number(3)), &limits, now), Ok(()));
    }

    #[test]
    fn longest_idle_address_makes_room_where_the_table_is_full() {
        let (mut table, now) = (Addresses::new(3), Instant::now());
        let limits = handshakes(Rate::new(1, 1));
        for address in 0..3 {
            assert_eq!(table.try_enter(Some(number(address)), &limits, now), Ok(()));
        }
        table.leave(number(1), &limits, now);
        table.leave(number(0), &limits, now);
        assert_eq!(table.try_enter(Some(number(3)), &limits, now), Ok(()));
        assert!(table.entries.contains_key(&number(0)) && !table.entries.contains_key(&number(1)));
    }

    proptest! {
        #[test]
        fn table_agrees_with_a_plain_list_of_connections(
            steps in proptest::collection::vec((0u32..6, any::<bool>(), 0u64..400), 0..300),
            most in 1u32..4,
            per_second in 1u32..10,
        ) {
            let limits = Limits {
                connections_per_address: Some(most),
                handshakes_per_address: Some(Rate::new(per_second, 3)),
                handshakes: None,
            };
            let (mut table, mut now) = (Addresses::new(1_000), Instant::now());
            let mut open: Vec<u32> = Vec::new();
            let mut buckets: HashMap<u32, TokenBucket> = HashMap::new();
            let rate = limits.handshakes_per_address.unwrap();
            for (address, comes, millis) in steps {
                now += Duration::from_millis(millis);
                let mine = open.iter().filter(|open| **open == address).count();
                if comes {
                    let bucket =
                        buckets.entry(address).or_insert_with(|| TokenBucket::full(rate, now));
                    let expected = if mine >= most as usize {
                        Err(Refused::AddressConnections)
                    } else {
                        bucket.try_take(rate, now).map_err(Refused::AddressHandshakes)
                    };
                    prop_assert_eq!(
                        table.try_enter(Some(number(address)), &limits, now), expected
                    );
                    if expected.is_ok() {
                        open.push(address);
                    }
                } else if mine > 0 {
                    let at = open.iter().position(|open| *open == address).unwrap();
                    open.swap_remove(at);
                    table.leave(number(address), &limits, now);
                }
                prop_assert!(table.idle.len() <= table.len());
                for address in &open {
                    prop_assert!(table.entries[&number(*address)].connections > 0);
                }
            }
            for address in open {
                table.leave(number(address), &limits, now);
            }
            table.forget_idle(&limits, now + Duration::from_secs(10));
            prop_assert!(table.is_empty() && table.idle.is_empty());
        }
    }
}
