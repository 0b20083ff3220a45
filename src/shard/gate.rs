//! The table of addresses that all shards share. It is locked when a socket comes and goes, never for a
//! message.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::admission::addresses::{AddressKey, Addresses, Limits, Refused};

/// Addresses that may be remembered beside those with connections: some MiB.
const MAX_IDLE_ADDRESSES: usize = 65_536;

/// Each connection can be of another address.
fn max_addresses(max_connections: usize) -> usize {
    max_connections.saturating_add(MAX_IDLE_ADDRESSES)
}

/// Lets in who may come in.
pub(crate) struct Gate(Mutex<Inner>);

struct Inner {
    addresses: Addresses,
    /// Those that hold, as far as anybody was told.
    limits: Limits,
}

impl Gate {
    /// A gate before `max_connections`.
    pub(crate) fn new(max_connections: usize) -> Self {
        let addresses = Addresses::new(max_addresses(max_connections));
        Self(Mutex::new(Inner { addresses, limits: Limits::default() }))
    }

    /// From now on there may be `max_connections`.
    pub(crate) fn set_max_connections(&self, max_connections: usize) {
        self.lock().addresses.set_max_entries(max_addresses(max_connections));
    }

    /// How many addresses are remembered.
    pub(crate) fn addresses(&self) -> usize {
        self.lock().addresses.len()
    }

    /// Lets in a connection of `address`, or of one that is not counted. It is counted until its ticket
    /// is given back.
    ///
    /// # Errors
    ///
    /// It may not come in now.
    pub(crate) fn try_enter(
        self: &Arc<Self>,
        address: Option<AddressKey>,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<Ticket>, Refused> {
        if *limits == Limits::default() {
            return Ok(None);
        }
        let mut inner = self.lock();
        inner.limits = *limits;
        inner.addresses.try_enter(address, limits, now)?;
        let counted = address.filter(|_| limits.are_by_address());
        Ok(counted.map(|address| Ticket { gate: Arc::clone(self), address }))
    }

    /// Counts one more handshake on a connection that came in before.
    ///
    /// # Errors
    ///
    /// There may be none now.
    pub(crate) fn try_ask_again(
        &self,
        address: Option<AddressKey>,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Refused> {
        let rates = Limits { connections_per_address: None, ..*limits };
        if rates == Limits::default() {
            return Ok(());
        }
        let mut inner = self.lock();
        inner.limits = *limits;
        inner.addresses.try_enter(address, &rates, now)?;
        if let Some(address) = address.filter(|_| rates.are_by_address()) {
            inner.addresses.leave(address, limits, now);
        }
        Ok(())
    }

    /// From now on these limits hold.
    pub(crate) fn set_limits(&self, limits: &Limits, now: Instant) {
        let mut inner = self.lock();
        inner.limits = *limits;
        inner.addresses.handle_new_limits(limits, now);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counts that a panic left behind are still the best there are.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("addresses", &self.addresses()).finish()
    }
}

/// Counts one connection for its address as long as it lives.
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    address: AddressKey,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let inner = &mut *self.gate.lock();
        inner.addresses.leave(self.address, &inner.limits, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::rate::Rate;

    #[test]
    fn connection_is_counted_as_long_as_its_ticket_lives() {
        let gate = Arc::new(Gate::new(10));
        let limits = Limits { connections_per_address: Some(1), ..Limits::default() };
        let address = Some(AddressKey::V6(7));
        let enter = |limits: &Limits| gate.try_enter(address, limits, Instant::now());
        assert!(matches!(enter(&Limits::default()), Ok(None)), "nothing is counted for nobody");
        let ticket = enter(&limits).expect("it is the first");
        assert!(matches!(enter(&limits), Err(Refused::AddressConnections)));
        assert_eq!(gate.addresses(), 1);
        drop(ticket);
        assert_eq!(gate.addresses(), 0);
        assert!(matches!(enter(&limits), Ok(Some(_))));
    }

    #[test]
    fn another_request_counts_as_a_handshake_and_as_no_connection() {
        let gate = Arc::new(Gate::new(10));
        let limits = Limits {
            connections_per_address: Some(1),
            handshakes_per_address: Some(Rate::new(1, 3)),
            ..Limits::default()
        };
        let (address, now) = (Some(AddressKey::V6(7)), Instant::now());
        let ticket = gate.try_enter(address, &limits, now).expect("it is the first");
        for _ in 0..2 {
            assert_eq!(gate.try_ask_again(address, &limits, now), Ok(()));
        }
        let refused = gate.try_ask_again(address, &limits, now);
        assert!(matches!(refused, Err(Refused::AddressHandshakes(_))));
        drop(ticket);
        gate.set_limits(&Limits::default(), now);
        assert_eq!(gate.addresses(), 0);
    }

    #[test]
    fn table_has_room_for_as_many_addresses_as_there_may_be_connections_after_a_reload_too() {
        let gate = Arc::new(Gate::new(0));
        let limits = Limits { connections_per_address: Some(1), ..Limits::default() };
        let mut tickets = Vec::new();
        let mut enter = |address: u64| -> Result<(), Refused> {
            let entered = gate.try_enter(Some(AddressKey::V6(address)), &limits, Instant::now());
            entered.map(|ticket| tickets.push(ticket))
        };
        let most = max_addresses(0) as u64;
        (0..most).try_for_each(&mut enter).expect("there is room");
        assert!(matches!(enter(most), Err(Refused::TableFull)));
        gate.set_max_connections(1);
        assert!(enter(most).is_ok());
        assert!(matches!(enter(most + 1), Err(Refused::TableFull)));
    }
}
