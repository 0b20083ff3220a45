//! One coarse timing wheel for all deadlines of a shard. No clock: instants come in.
//!
//! A connection has one entry that counts. When its deadline moves later, as it does with every
//! message, nothing happens here: the entry comes due, the connection is asked, and it is entered
//! again. When its deadline moves earlier, a second entry is made and the first is ignored when it
//! comes due.

use std::time::{Duration, Instant};

/// How coarse deadlines are.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Ticks of one turn of the wheel: 51 s. A later deadline is entered at the far end, and again when
/// that comes due.
const TICKS: u64 = 1024;

/// Whose deadline: a slot of the connection table and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Deadlines, sorted into ticks.
#[derive(Debug)]
pub(crate) struct Wheel {
    origin: Instant,
    /// All ticks up to this one have been taken.
    taken: u64,
    ticks: Vec<Vec<Entry>>,
    entries: usize,
}

impl Wheel {
    pub(crate) fn new(now: Instant) -> Self {
        let ticks = (0..TICKS).map(|_| Vec::new()).collect();
        Self { origin: now, taken: 0, ticks, entries: 0 }
    }

    /// The tick at which `deadline` comes due: the first that is not before it, as far as the wheel
    /// reaches from `now`.
    pub(crate) fn tick(&mut self, deadline: Instant, now: Instant) -> u64 {
        if self.entries == 0 {
            // Nobody turns an empty wheel, so it may have stood still for longer than it reaches.
            self.taken = self.taken.max(self.current(now));
        }
        let after = deadline.saturating_duration_since(self.origin);
        let tick = after.as_nanos().div_ceil(TICK.as_nanos()) as u64;
        tick.clamp(self.taken + 1, self.taken + TICKS - 1)
    }

    /// Enters a deadline at `tick`, which [`Wheel::tick`] gave.
    pub(crate) fn enter(&mut self, tick: u64, entry: Entry) {
        self.ticks[(tick % TICKS) as usize].push(entry);
        self.entries += 1;
    }

    /// When the next entry comes due.
    pub(crate) fn next(&self) -> Option<Instant> {
        if self.entries == 0 {
            return None;
        }
        let mut ticks = self.taken + 1..self.taken + TICKS;
        let tick = ticks.find(|tick| !self.ticks[(tick % TICKS) as usize].is_empty())?;
        Some(self.instant(tick))
    }

    /// Takes the entries of the oldest tick that is due at `now`, with that tick.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(u64, Vec<Entry>)> {
        let current = self.current(now);
        while self.taken < current {
            self.taken += 1;
            let due = std::mem::take(&mut self.ticks[(self.taken % TICKS) as usize]);
            if !due.is_empty() {
                self.entries -= due.len();
                return Some((self.taken, due));
            }
        }
        None
    }

    /// The last tick that is due at `now`.
    fn current(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.origin).as_nanos() / TICK.as_nanos()) as u64
    }

    fn instant(&self, tick: u64) -> Instant {
        self.origin + Duration::from_nanos(TICK.as_nanos() as u64 * tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u32) -> Entry {
        Entry { slot, generation: 0 }
    }

    /// Turns the wheel to each next due instant and lists what came due when.
    fn run(wheel: &mut Wheel, start: Instant) -> Vec<(Duration, u32)> {
        let mut seen = Vec::new();
        while let Some(next) = wheel.next() {
            while let Some((_, due)) = wheel.take_due(next) {
                seen.extend(due.into_iter().map(|entry| (next - start, entry.slot)));
            }
        }
        seen
    }

    #[test]
    fn deadlines_come_due_in_order_never_early_and_at_most_a_tick_late() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let deadlines = [25_000, 1, 50, 60, 5_000, 0].map(Duration::from_millis);
        for (slot, deadline) in deadlines.into_iter().enumerate() {
            let tick = wheel.tick(start + deadline, start);
            wheel.enter(tick, entry(slot as u32));
        }
        let seen = run(&mut wheel, start);
        assert_eq!(seen.iter().map(|(_, slot)| *slot).collect::<Vec<_>>(), [1, 2, 5, 3, 4, 0]);
        for (at, slot) in seen {
            let late = at - deadlines[slot as usize];
            assert!(late <= TICK, "slot {slot} is {late:?} late");
        }
    }

    #[test]
    fn deadline_beyond_the_wheel_comes_due_at_its_far_end() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let tick = wheel.tick(start + Duration::from_secs(3600), start);
        wheel.enter(tick, entry(7));
        let [(at, 7)] = run(&mut wheel, start)[..] else { panic!("one entry") };
        assert_eq!(at, TICK * (TICKS as u32 - 1));
    }

    #[test]
    fn wheel_that_was_not_turned_for_long_gives_everything_at_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for seconds in 1..=3 {
            let tick = wheel.tick(start + Duration::from_secs(seconds), start);
            wheel.enter(tick, entry(seconds as u32));
        }
        let mut slots = Vec::new();
        while let Some((_, due)) = wheel.take_due(start + Duration::from_secs(600)) {
            slots.extend(due.into_iter().map(|entry| entry.slot));
        }
        assert_eq!(slots, [1, 2, 3]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn deadline_entered_after_a_long_quiet_time_is_not_due_at_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let now = start + Duration::from_secs(3600);
        let deadline = now + Duration::from_secs(5);
        let tick = wheel.tick(deadline, now);
        wheel.enter(tick, entry(1));
        assert_eq!(wheel.take_due(now), None);
        assert_eq!(wheel.next(), Some(deadline));
    }

    #[test]
    fn deadline_in_the_past_comes_due_with_the_next_tick() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let now = start + Duration::from_secs(10);
        assert_eq!(wheel.take_due(now), None);
        let tick = wheel.tick(start, now);
        wheel.enter(tick, entry(1));
        assert_eq!(wheel.next(), Some(now + TICK));
    }
}
