//! Which peers are believed when they say for whom they speak: the networks of `trusted_proxies`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

/// Who is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host. An IPv4 address that came as IPv6 (`::ffff:192.0.2.1`) is an IPv4 address here.
    Ip(IpAddr),
    /// A process on this machine, by a Unix socket.
    Unix,
}

impl Peer {
    /// The host with this address.
    pub fn ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }

    /// Its address, where it has one.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Unix => None,
        }
    }
}

/// One entry of `trusted_proxies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Every host of a network.
    Network(IpNet),
    /// Whoever connects by a Unix socket.
    Unix,
}

/// A text that is no entry of `trusted_proxies`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is neither a network nor an address. Write networks such as 10.0.0.0/8 or fd00::/8, \
     addresses such as 192.0.2.7, or unix for peers of a Unix socket"
)]
pub struct TrustedProxyError(String);

impl FromStr for TrustedProxy {
    type Err = TrustedProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("unix") {
            return Ok(Self::Unix);
        }
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        let network = text.parse::<IpNet>().ok().or_else(address);
        network
            .map(|network| Self::Network(canonical(network)))
            .ok_or_else(|| TrustedProxyError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                network.addr().fmt(f)
            }
            Self::Network(network) => network.fmt(f),
        }
    }
}

/// The network without the bits of a host; one of IPv4 addresses written as IPv6 as one of IPv4.
fn canonical(network: IpNet) -> IpNet {
    let IpAddr::V4(address) = network.network().to_canonical() else {
        return network.trunc();
    };
    let prefix = match network {
        IpNet::V4(_) => Some(network.prefix_len()),
        IpNet::V6(_) => network.prefix_len().checked_sub(96),
    };
    let network_v4 = prefix.and_then(|prefix| IpNet::new(address.into(), prefix).ok());
    network_v4.unwrap_or(network).trunc()
}

/// Everyone who is believed. By default nobody is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<TrustedProxy>);

impl TrustedProxies {
    /// Those of `proxies`, and nobody else.
    pub fn new(proxies: Vec<TrustedProxy>) -> Self {
        Self(proxies)
    }

    /// In the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &TrustedProxy> {
        self.0.iter()
    }

    /// Nobody is believed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `peer` is believed.
    pub fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Unix => self.0.contains(&TrustedProxy::Unix),
            Peer::Ip(address) => self.trusts_address(address),
        }
    }

    /// Whether the host with this address is believed.
    pub fn trusts_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|proxy| match proxy {
            TrustedProxy::Network(network) => network.contains(&address),
            TrustedProxy::Unix => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(entries: &[&str]) -> TrustedProxies {
        TrustedProxies::new(entries.iter().map(|entry| entry.parse().unwrap()).collect())
    }

    fn trusts(proxies: &TrustedProxies, address: &str) -> bool {
        proxies.trusts(Peer::ip(address.parse().unwrap()))
    }

    #[test]
    fn nobody_is_believed_by_default() {
        let nobody = TrustedProxies::default();
        assert!(!nobody.trusts(Peer::Unix) && !trusts(&nobody, "127.0.0.1"));
    }

    #[test]
    fn networks_and_addresses_are_believed_and_their_neighbours_are_not() {
        let proxies = trusted(&["10.1.2.3/8", "192.0.2.7", "fd00::/8", "2001:db8::1"]);
        for address in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "fd12::1", "2001:db8::1"] {
            assert!(trusts(&proxies, address), "{address}");
        }
        for address in ["11.0.0.0", "192.0.2.8", "fc00::1", "2001:db8::2", "::"] {
            assert!(!trusts(&proxies, address), "{address}");
        }
        assert!(!proxies.trusts(Peer::Unix));
        assert!(trusted(&["Unix"]).trusts(Peer::Unix));
    }

    #[test]
    fn ipv4_written_as_ipv6_is_ipv4_in_both_places() {
        assert!(trusts(&trusted(&["10.0.0.0/8"]), "::ffff:10.1.1.1"));
        assert!(trusts(&trusted(&["::ffff:10.0.0.0/104"]), "10.1.1.1"));
        assert!(trusts(&trusted(&["::ffff:10.0.0.1"]), "10.0.0.1"));
        assert!(!trusts(&trusted(&["::/0"]), "10.0.0.1"));
        assert!(trusts(&trusted(&["::/0"]), "2001:db8::1"));
    }

    #[test]
    fn entries_are_shown_as_they_would_be_written() {
        for (written, shown) in [
            (" 10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::1", "::1"),
            ("UNIX", "unix"),
        ] {
            assert_eq!(written.parse::<TrustedProxy>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn other_words_are_refused_with_the_remedy() {
        for text in ["", "localhost", "10.0.0.0/33", "10.0.0.1:80", "10.0.0", &"x".repeat(10_000)] {
            let error = text.parse::<TrustedProxy>().unwrap_err().to_string();
            assert!(error.contains("Write networks such as") && error.len() < 300, "{error}");
        }
    }
}
