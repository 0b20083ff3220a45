//! Which web pages may open a connection? RFC 6455 section 10.2: a browser says in `Origin` whose
//! page asks, and a server that does not look lets every page on the web act with the cookies of
//! its visitors.
//!
//! - [`AllowedOrigins`]: the verdict on one opening handshake.
//! - [`OriginPattern`]: one entry of the operator's list.
//!
//! This guards people at browsers and nobody else: any other program sends the `Origin` it likes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The origins whose pages may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigins {
    patterns: Vec<OriginPattern>,
}

impl AllowedOrigins {
    /// Pages that were served under the host name and port to which they now connect.
    pub fn same_host() -> Self {
        Self::patterns(vec![OriginPattern::SAME_HOST])
    }

    /// Pages of an origin that at least one of `patterns` matches. Nothing is added to the list: it
    /// admits the page's own host only with [`OriginPattern::SAME_HOST`] in it.
    pub fn patterns(patterns: Vec<OriginPattern>) -> Self {
        Self { patterns }
    }

    /// Whether an opening handshake with these headers may go on.
    ///
    /// `origin` and `host` are the values of `Origin` and `Host`. A handshake without `Origin`
    /// passes, since no browser sends one; `Origin: null` (a sandboxed frame, a local file) passes
    /// only where the list has `null` or `*`.
    pub fn allows(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(text) = origin else { return true };
        let origin = Origin::parse(text);
        self.patterns.iter().any(|pattern| match &pattern.0 {
            Pattern::Any => true,
            Pattern::Null => text == "null",
            Pattern::SameHost => {
                origin.as_ref().is_some_and(|origin| host.is_some_and(|host| origin.is_at(host)))
            }
            Pattern::Origins { scheme, host, port } => origin.as_ref().is_some_and(|origin| {
                *scheme == origin.scheme && host.matches(&origin.host) && port.matches(origin.port)
            }),
        })
    }

    /// The entries of the list, in the order they were given.
    pub fn iter(&self) -> impl Iterator<Item = &OriginPattern> {
        self.patterns.iter()
    }
}

/// One entry of the operator's list of origins.
///
/// | written                      | matches                                                   |
/// |------------------------------|-----------------------------------------------------------|
/// | `*`                          | every origin, `null` too                                  |
/// | `null`                       | the origin of sandboxed frames and local files            |
/// | `same-host`                  | the origin whose host and port the `Host` header names    |
/// | `https://example.com`        | this origin, on the port that its scheme implies          |
/// | `https://example.com:8443`   | this origin                                               |
/// | `https://*.example.com`      | every subdomain, however deep, but not `example.com`      |
/// | `http://localhost:*`         | this host on any port                                     |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern(Pattern);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    Null,
    SameHost,
    Origins {
        /// In lower case.
        scheme: String,
        host: HostPattern,
        port: PortPattern,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Exactly(Host),
    /// `.example.com` with its leading dot, in lower case.
    EndingIn(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortPattern {
    /// `None` is the absence of a port under a scheme that implies none.
    Exactly(Option<u16>),
    Any,
}

/// Why a text is no [`OriginPattern`]. The data is the text as it was written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OriginPatternError {
    /// Nothing, or only blanks.
    #[error(
        "a pattern is empty. Take out the comma too many, or write same-host for pages served \
         under the gateway's own host name"
    )]
    Empty,
    /// Only a host, as in `example.com`.
    #[error("{0:?} has no scheme. Write https://{0}")]
    NoScheme(String),
    /// `ws` or `wss`, which no page is served by.
    #[error(
        "{0:?} has the scheme of the connection, but Origin has the scheme of the page. Write \
         https for wss and http for ws"
    )]
    WebSocketScheme(String),
    /// Something that cannot be a scheme.
    #[error("{0:?} does not begin with a scheme. Write https://example.com")]
    Scheme(String),
    /// Something behind the port, if only a slash.
    #[error("{0:?} goes on behind the host, but an origin has no path. End it before the slash")]
    Path(String),
    /// A `*` where none may stand.
    #[error(
        "{0:?} has a * where none may stand. Write * alone for every origin, https://*.example.com \
         for subdomains, http://localhost:* for any port"
    )]
    Wildcard(String),
    /// Something that cannot be a host.
    #[error(
        "{0:?} has no valid host. Write a name (an international one in its xn-- form), an IPv4 \
         address, or an IPv6 address in brackets"
    )]
    Host(String),
    /// Something that cannot be a port.
    #[error("{0:?} has no valid port. Write a number from 0 to 65535, or * for any port")]
    Port(String),
}

impl OriginPattern {
    /// Matches the origin whose host and port the `Host` header names.
    ///
    /// The scheme is not compared, since a TLS-terminating load balancer in front of us makes
    /// `https` out of what arrives here without TLS.
    pub const SAME_HOST: Self = Self(Pattern::SameHost);
}

impl FromStr for OriginPattern {
    type Err = OriginPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        match text {
            "" => return Err(OriginPatternError::Empty),
            "*" => return Ok(Self(Pattern::Any)),
            "null" => return Ok(Self(Pattern::Null)),
            "same-host" => return Ok(Self::SAME_HOST),
            _ => {}
        }
        let refuse = |error: fn(String) -> OriginPatternError| error(text.to_owned());

        let (scheme, authority) =
            text.split_once("://").ok_or_else(|| refuse(OriginPatternError::NoScheme))?;
        let scheme = parse_scheme(scheme).ok_or_else(|| refuse(OriginPatternError::Scheme))?;
        if scheme == "ws" || scheme == "wss" {
            return Err(refuse(OriginPatternError::WebSocketScheme));
        }
        if authority.contains(['/', '?', '#']) {
            return Err(refuse(OriginPatternError::Path));
        }
        let (host, port) = split_port(authority).ok_or_else(|| refuse(OriginPatternError::Host))?;

        let port = match port {
            None => PortPattern::Exactly(implied_port(&scheme)),
            Some("*") => PortPattern::Any,
            Some(port) => match parse_port(port) {
                Some(port) => PortPattern::Exactly(Some(port)),
                None => return Err(refuse(OriginPatternError::Port)),
            },
        };
        let (parent, subdomains_only) = match host.strip_prefix("*.") {
            Some(parent) => (parent, true),
            None => (host, false),
        };
        if parent.contains('*') {
            return Err(refuse(OriginPatternError::Wildcard));
        }
        let host = match (Host::parse(parent), subdomains_only) {
            (Some(host), false) => HostPattern::Exactly(host),
            (Some(Host::Name(parent)), true) => HostPattern::EndingIn(format!(".{parent}")),
            (Some(Host::Address(_)), true) => return Err(refuse(OriginPatternError::Wildcard)),
            (None, _) => return Err(refuse(OriginPatternError::Host)),
        };
        Ok(Self(Pattern::Origins { scheme, host, port }))
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Any => f.write_str("*"),
            Pattern::Null => f.write_str("null"),
            Pattern::SameHost => f.write_str("same-host"),
            Pattern::Origins { scheme, host, port } => {
                match host {
                    HostPattern::Exactly(host) => write!(f, "{scheme}://{host}")?,
                    HostPattern::EndingIn(parent) => write!(f, "{scheme}://*{parent}")?,
                }
                match port {
                    PortPattern::Any => f.write_str(":*"),
                    PortPattern::Exactly(port) if *port == implied_port(scheme) => Ok(()),
                    PortPattern::Exactly(Some(port)) => write!(f, ":{port}"),
                    PortPattern::Exactly(None) => Ok(()),
                }
            }
        }
    }
}

impl HostPattern {
    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exactly(expected), host) => expected == host,
            // Longer than the ending: `https://.example.com` is no subdomain.
            (Self::EndingIn(parent), Host::Name(name)) => {
                name.len() > parent.len() && name.ends_with(parent)
            }
            (Self::EndingIn(_), Host::Address(_)) => false,
        }
    }
}

impl PortPattern {
    fn matches(self, port: Option<u16>) -> bool {
        match self {
            Self::Exactly(expected) => expected == port,
            Self::Any => true,
        }
    }
}

/// The value of an `Origin` header: RFC 6454 section 6.2.
struct Origin {
    /// In lower case.
    scheme: String,
    host: Host,
    /// The port that was written or, without one, the port that the scheme implies.
    port: Option<u16>,
}

impl Origin {
    /// `None` for `null` and for what no browser sends: neither is equal to any origin.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = parse_scheme(scheme)?;
        let (host, port) = split_port(authority)?;
        let port = match port {
            Some(port) => Some(parse_port(port)?),
            None => implied_port(&scheme),
        };
        Some(Self { host: Host::parse(host)?, port, scheme })
    }

    /// Whether this is an origin of the server that `host`, the value of a `Host` header, names.
    ///
    /// Without a port in it, the port that the scheme of the page implies is meant. It is the
    /// page's and not ours: we may well stand behind a load balancer that speaks TLS for us.
    fn is_at(&self, host: &str) -> bool {
        // An app's own scheme (`capacitor://localhost`) is no server, so it has no host to compare.
        let Some(implied_port) = implied_port(&self.scheme) else { return false };
        let Some((host, port)) = split_port(host) else { return false };
        let port = match port {
            Some(port) => parse_port(port),
            None => Some(implied_port),
        };
        port.is_some() && port == self.port && Host::parse(host).as_ref() == Some(&self.host)
    }
}

/// A host, in the one form in which it can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// In lower case.
    Name(String),
    Address(IpAddr),
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().ok().map(|address| Self::Address(address.into()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let is_name = !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        is_name.then(|| Self::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// The scheme in lower case (RFC 3986 section 3.1), or `None` where `text` cannot be one.
fn parse_scheme(text: &str) -> Option<String> {
    let is_scheme = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    is_scheme.then(|| text.to_ascii_lowercase())
}

/// The port of a page whose URL names none, or `None` where the scheme implies none.
fn implied_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Splits `example.com:80` and `[::1]:80` into a host and what stands behind its colon. `None`
/// where anything but a colon follows a bracket.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let host_end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(host_end);
    if rest.is_empty() { Some((host, None)) } else { Some((host, Some(rest.strip_prefix(':')?))) }
}

fn parse_port(text: &str) -> Option<u16> {
    // `parse` alone would also take a plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(patterns: &[&str]) -> AllowedOrigins {
        AllowedOrigins::patterns(
            patterns.iter().map(|pattern| pattern.parse().expect(pattern)).collect(),
        )
    }

    fn is_same_host(origin: &str, host: &str) -> bool {
        AllowedOrigins::same_host().allows(Some(origin), Some(host))
    }

    fn is_listed(pattern: &str, origin: &str) -> bool {
        listed(&[pattern]).allows(Some(origin), Some("gateway.internal:8080"))
    }

    #[test]
    fn handshake_without_an_origin_passes() {
        assert!(AllowedOrigins::same_host().allows(None, Some("example.com")));
        assert!(listed(&["https://example.com"]).allows(None, None));
    }

    #[test]
    fn page_of_the_same_host_passes() {
        assert!(is_same_host("http://example.com:8080", "example.com:8080"));
        assert!(is_same_host("HTTP://Example.COM", "eXample.com"));
        assert!(is_same_host("http://[::1]:8080", "[0:0:0:0:0:0:0:1]:8080"));
        assert!(is_same_host("http://10.0.0.1", "10.0.0.1"));
    }

    #[test]
    fn page_behind_a_load_balancer_that_terminates_tls_passes() {
        assert!(is_same_host("https://example.com", "example.com"));
        assert!(is_same_host("https://example.com", "example.com:443"));
        assert!(is_same_host("https://example.com:443", "example.com"));
        assert!(is_same_host("https://[2001:db8::1]", "[2001:DB8::1]"));
    }

    #[test]
    fn page_of_another_host_or_port_is_refused() {
        assert!(!is_same_host("https://evil.example", "example.com"));
        assert!(!is_same_host("https://example.com.evil.example", "example.com"));
        assert!(!is_same_host("https://sub.example.com", "example.com"));
        assert!(!is_same_host("https://example.com", "example.com:8080"));
        assert!(!is_same_host("https://example.com", "example.com:80"));
        assert!(!is_same_host("http://example.com:8080", "example.com"));
        assert!(!is_same_host("http://[::1]", "[::2]"));
    }

    #[test]
    fn what_is_no_web_origin_has_no_same_host() {
        for origin in [
            "null",
            "",
            "example.com",
            "capacitor://example.com",
            "https://",
            "https://example.com:",
            "https://example.com:+443",
            "https://example.com:99999",
            "https://example.com/",
            "https://user@example.com",
            "https://[::1",
            "https://[::1]x",
            "https://[example.com]",
            "https://a.example https://example.com",
        ] {
            assert!(!is_same_host(origin, "example.com"), "{origin:?}");
            assert!(!AllowedOrigins::same_host().allows(Some(origin), None), "{origin:?}");
        }
        for host in ["", "example.com:", "example.com:x", "[::1", "user@example.com"] {
            assert!(!is_same_host("https://example.com", host), "{host:?}");
        }
        assert!(!AllowedOrigins::same_host().allows(Some("https://example.com"), None));
    }

    #[test]
    fn null_passes_only_where_it_is_listed() {
        assert!(is_listed("*", "null"));
        assert!(is_listed("null", "null"));
        assert!(!is_listed("https://example.com", "null"));
        assert!(!is_same_host("null", "null"));
    }

    #[test]
    fn star_passes_everything() {
        assert!(is_listed("*", "https://example.com"));
        assert!(is_listed("*", "not even an origin"));
    }

    #[test]
    fn origin_passes_on_its_own_scheme_and_port_only() {
        assert!(is_listed("https://example.com", "https://example.com"));
        assert!(is_listed("https://Example.com", "https://example.com:443"));
        assert!(is_listed("https://example.com:8443", "https://example.com:8443"));
        assert!(is_listed("capacitor://localhost", "capacitor://localhost"));
        assert!(!is_listed("https://example.com", "http://example.com"));
        assert!(!is_listed("https://example.com", "https://example.com:8443"));
        assert!(!is_listed("https://example.com:8443", "https://example.com"));
        assert!(!is_listed("https://example.com", "https://www.example.com"));
    }

    #[test]
    fn subdomains_pass_at_any_depth_and_the_parent_does_not() {
        assert!(is_listed("https://*.example.com", "https://a.example.com"));
        assert!(is_listed("https://*.example.com", "https://a.b.EXAMPLE.com"));
        assert!(!is_listed("https://*.example.com", "https://example.com"));
        assert!(!is_listed("https://*.example.com", "https://.example.com"));
        assert!(!is_listed("https://*.example.com", "https://evilexample.com"));
        assert!(!is_listed("https://*.example.com", "https://a.example.com.evil.example"));
        assert!(!is_listed("https://*.example.com", "https://a.example.com:8443"));
    }

    #[test]
    fn any_port_passes_where_the_port_is_a_star() {
        assert!(is_listed("http://localhost:*", "http://localhost"));
        assert!(is_listed("http://localhost:*", "http://localhost:3000"));
        assert!(is_listed("http://[::1]:*", "http://[::1]:3000"));
        assert!(!is_listed("http://localhost:*", "https://localhost:3000"));
        assert!(!is_listed("http://localhost:*", "http://localhost.evil.example:3000"));
    }

    #[test]
    fn list_admits_the_own_host_only_where_it_says_so() {
        let host = Some("example.com");
        let own = Some("https://example.com");
        assert!(!listed(&["https://other.example"]).allows(own, host));
        assert!(listed(&["https://other.example", "same-host"]).allows(own, host));
    }

    #[test]
    fn bad_pattern_is_refused_with_its_remedy() {
        let cases = [
            ("example.com", OriginPatternError::NoScheme as fn(String) -> _),
            ("localhost:3000", OriginPatternError::NoScheme),
            ("wss://example.com", OriginPatternError::WebSocketScheme),
            ("*://example.com", OriginPatternError::Scheme),
            ("https://example.com/", OriginPatternError::Path),
            ("https://example.com/chat", OriginPatternError::Path),
            ("https://*", OriginPatternError::Wildcard),
            ("https://www*.example.com", OriginPatternError::Wildcard),
            ("https://*.*.example.com", OriginPatternError::Wildcard),
            ("https://*.10.0.0.1", OriginPatternError::Wildcard),
            ("https://", OriginPatternError::Host),
            ("https://bücher.example", OriginPatternError::Host),
            ("https://::1", OriginPatternError::Port),
            ("https://example.com:80a", OriginPatternError::Port),
            ("https://example.com:", OriginPatternError::Port),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<OriginPattern>(), Err(expected(text.to_owned())), "{text}");
        }
        assert_eq!(" ".parse::<OriginPattern>(), Err(OriginPatternError::Empty));
        assert_eq!(
            OriginPatternError::NoScheme("example.com".to_owned()).to_string(),
            "\"example.com\" has no scheme. Write https://example.com"
        );
    }

    #[test]
    fn pattern_is_shown_as_it_would_be_written() {
        for text in [
            "*",
            "null",
            "same-host",
            "https://example.com",
            "https://example.com:8443",
            "https://*.example.com",
            "http://localhost:*",
            "http://[::1]:3000",
            "capacitor://localhost",
        ] {
            assert_eq!(text.parse::<OriginPattern>().expect(text).to_string(), text);
        }
    }
}
