//! Whose is a new connection, and may it come in now? Asked of each socket whose client is known before
//! its request, and of each request that a proxy brings.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;

use crate::admission::addresses::{AddressKey, Refused};
use crate::admission::forwarded;
use crate::shard::gate::Ticket;
use crate::shard::handshake::proxied::{Remote, Role};
use crate::shard::settings::Admission;
use crate::shard::{MAX_REFUSED, Shard};
use crate::telemetry::counters::Rejection;

/// How long to wait where nothing says when there will be room.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Where a client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClientAddress {
    /// `None` at the end of a Unix socket.
    pub(super) address: Option<IpAddr>,
    /// A proxy said so; the socket's is another.
    pub(super) is_proxied: bool,
    /// Limits of one address hold for it. They do not for a trusted proxy that names nobody: those
    /// behind it must not be limited like one.
    is_limited: bool,
}

impl ClientAddress {
    /// As far as `remote` itself tells, whatever its requests say.
    pub(super) fn of_socket(remote: &Remote) -> Self {
        let is_client = matches!(remote.role, Role::Client | Role::ProxiedClient);
        let is_proxied = remote.role == Role::ProxiedClient;
        Self { address: remote.address, is_proxied, is_limited: is_client }
    }

    /// Of a request with these headers that came from `remote`.
    pub(super) fn of_request(remote: &Remote, headers: &HeaderMap, settings: &Admission) -> Self {
        let of_socket = Self::of_socket(remote);
        match remote.role {
            Role::Client | Role::ProxiedClient | Role::ProxyAlone => of_socket,
            Role::Proxy => {
                let (believed, proxies) = (settings.forwarded_header, &settings.trusted_proxies);
                let named = forwarded::client_address(headers, believed, proxies);
                named.map_or(of_socket, |address| Self {
                    address: Some(address),
                    is_proxied: true,
                    // The last proxy that is known, where that names nobody.
                    is_limited: !proxies.trusts_address(address),
                })
            }
        }
    }

    /// Lets it in and counts it, as long as the ticket lives.
    pub(super) fn try_enter(self, shard: &Shard) -> Result<Option<Ticket>, Limited> {
        let limits = &shard.settings().admission.limits;
        shard.loads.gate.try_enter(self.limited(), limits, shard.now()).map_err(Limited)
    }

    /// Counts another request of a connection that has come in.
    pub(super) fn try_ask_again(self, shard: &Shard) -> Result<(), Limited> {
        let limits = &shard.settings().admission.limits;
        shard.loads.gate.try_ask_again(self.limited(), limits, shard.now()).map_err(Limited)
    }

    /// What counts as its address for the limits, where they hold for it.
    fn limited(self) -> Option<AddressKey> {
        self.address.filter(|_| self.is_limited).map(AddressKey::from)
    }
}

/// Somebody may not come in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limited(pub(super) Refused);

impl Limited {
    pub(super) fn reason(self) -> Rejection {
        match self.0 {
            Refused::AddressConnections => Rejection::AddressLimit,
            Refused::AddressHandshakes(_) => Rejection::AddressRate,
            Refused::Handshakes(_) => Rejection::HandshakeRate,
            Refused::TableFull => Rejection::Overload,
        }
    }

    /// In whole seconds.
    pub(super) fn retry_after(self) -> u64 {
        let wait = match self.0 {
            Refused::AddressHandshakes(wait) | Refused::Handshakes(wait) => wait,
            Refused::AddressConnections | Refused::TableFull => RETRY_AFTER,
        };
        wait.as_nanos().div_ceil(1_000_000_000).clamp(1, 3_600) as u64
    }

    pub(super) fn text(self) -> &'static str {
        match self.0 {
            Refused::AddressConnections => {
                "your address has as many connections as it may have; close one, or try again later"
            }
            Refused::AddressHandshakes(_) => "your address connects too often; try again later",
            Refused::Handshakes(_) | Refused::TableFull => {
                "too many clients connect at once; try again later"
            }
        }
    }
}

/// What is known of whoever makes a handshake.
#[derive(Default)]
pub(super) enum CheckIn {
    /// Its request will say who it is.
    #[default]
    Later,
    /// It has come in.
    In(ClientAddress, Option<Ticket>),
    /// It will only be told why not.
    Refused { why: Limited, _seat: RefusedSeat },
}

/// One of the sockets that a shard will only tell why they are refused.
pub(super) struct RefusedSeat(Rc<Shard>);

impl RefusedSeat {
    /// `None` where there are as many as are allowed.
    pub(super) fn take(shard: &Rc<Shard>) -> Option<Self> {
        let refused = shard.refused.get();
        (refused < MAX_REFUSED).then(|| {
            shard.refused.set(refused + 1);
            Self(Rc::clone(shard))
        })
    }
}

impl Drop for RefusedSeat {
    fn drop(&mut self) {
        self.0.refused.set(self.0.refused.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::admission::proxies::TrustedProxies;

    #[test]
    fn headers_of_a_request_count_where_a_proxy_brings_it_and_nowhere_else() {
        let settings = Admission {
            trusted_proxies: TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]),
            ..Admission::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9, 192.0.2.1"));
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        for (role, expected, is_proxied, is_limited) in [
            (Role::Client, "10.0.0.1", false, true),
            (Role::ProxiedClient, "10.0.0.1", true, true),
            (Role::ProxyAlone, "10.0.0.1", false, false),
            (Role::Proxy, "192.0.2.1", true, true),
        ] {
            let remote = Remote { address: address("10.0.0.1"), role };
            let found = ClientAddress::of_request(&remote, &headers, &settings);
            let expected = ClientAddress { address: address(expected), is_proxied, is_limited };
            assert_eq!(found, expected, "{role:?}");
        }
        // A proxy that names nobody is counted for nobody, the last one of several too.
        let remote = Remote { address: address("10.0.0.1"), role: Role::Proxy };
        headers.insert("x-forwarded-for", HeaderValue::from_static("unknown, 10.0.0.7"));
        let found = ClientAddress::of_request(&remote, &headers, &settings);
        assert_eq!((found.address, found.is_limited), (address("10.0.0.7"), false));
        let remote = Remote { address: address("10.0.0.1"), role: Role::Proxy };
        let found = ClientAddress::of_request(&remote, &HeaderMap::new(), &settings);
        assert_eq!(found, ClientAddress::of_socket(&remote));
        assert!(!found.is_limited);
    }

    #[test]
    fn waits_are_told_in_whole_seconds_never_too_short() {
        let after =
            |millis| Limited(Refused::Handshakes(Duration::from_millis(millis))).retry_after();
        assert_eq!([0, 1, 1_000, 1_001, 100_000_000].map(after), [1, 1, 1, 2, 3_600]);
    }
}
