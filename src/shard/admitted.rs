//! What is remembered of how a connection came in: where its client is, for which address it is counted,
//! how fast it may send and when it has lasted long enough. Most connections need none of it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use crate::admission::age;
use crate::pubsub::ConnectionId;
use crate::shard::client::Client;
use crate::shard::gate::Ticket;
use crate::shard::pace::Pace;
use crate::shard::settings::Admission;

/// Beyond what every connection has.
pub(crate) struct Admitted {
    /// Where the client is, if the socket does not tell. `None`: at the other end of it.
    address: Option<IpAddr>,
    /// Given back when the connection ends.
    _ticket: Option<Ticket>,
    pub(crate) pace: Option<Box<Pace>>,
    /// When it has lasted long enough.
    ends_at: Option<Instant>,
}

impl Admitted {
    /// `None` where there is nothing to be remembered of the connection called `id`, which begins now.
    /// `address` is what the socket does not tell.
    pub(crate) fn new(
        id: ConnectionId,
        address: Option<IpAddr>,
        ticket: Option<Ticket>,
        settings: &Admission,
        now: Instant,
    ) -> Option<Box<Self>> {
        let pace = Pace::new(settings, now);
        let ends_at = settings
            .max_connection_age
            .map(|age| now + age::with_jitter(age, RandomState::new().hash_one(id)));
        let is_needed =
            address.is_some() || ticket.is_some() || pace.is_some() || ends_at.is_some();
        is_needed.then(|| Box::new(Self { address, _ticket: ticket, pace, ends_at }))
    }
}

impl Client {
    /// How fast it may send, where that is limited.
    #[inline]
    pub(crate) fn pace(&self) -> Option<&Pace> {
        self.admitted.as_ref()?.pace.as_deref()
    }

    /// When it has lasted long enough, where ages are limited.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        self.admitted.as_ref()?.ends_at
    }

    /// Where the client is. `None` at the end of a Unix socket, and where the kernel does not know any
    /// more.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        let said = self.admitted.as_ref().and_then(|admitted| admitted.address);
        said.or_else(|| self.socket.borrow().peer_address())
    }
}

/// An address for the log, which has a word where there is none.
pub(crate) struct Shown(pub(crate) Option<IpAddr>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}
