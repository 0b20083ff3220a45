//! What trusted proxies say in a request: `X-Forwarded-For`, or `Forwarded` (RFC 7239).
//!
//! Each proxy adds at the right the address that its connection came from. So the list is walked from
//! the right: as long as an entry is a trusted proxy, the next one was written by it and is believed.
//! The first that is none is the client; what stands left of it anyone may have made up. An entry that
//! is no address (`unknown`, a name that hides one, what cannot be read) ends the walk at what is known.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

use crate::admission::proxies::TrustedProxies;

/// Most entries that are walked over. There is no chain of so many proxies.
const MAX_ENTRIES: usize = 64;

/// The header that is believed. Proxies add to the one they know and pass the other on as the client
/// wrote it, so there is only ever one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// Neither.
    Off,
    /// `X-Forwarded-For: client, proxy`.
    XForwardedFor,
    /// `Forwarded: for=client;proto=https, for=proxy` (RFC 7239).
    Forwarded,
}

/// Where a request came from that a trusted proxy has brought: the rightmost address in `headers` that
/// is no trusted proxy, or where all are trusted the leftmost. `None` where nothing is said.
pub fn client_address(
    headers: &HeaderMap,
    believed: ForwardedHeader,
    proxies: &TrustedProxies,
) -> Option<IpAddr> {
    let mut known = None;
    let mut walk = |address: Option<IpAddr>| {
        if address.is_some() {
            known = address;
        }
        // Whether to walk on.
        address.is_some_and(|address| proxies.trusts_address(address))
    };
    let name = match believed {
        ForwardedHeader::Off => return None,
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => "forwarded",
    };
    let mut left = MAX_ENTRIES;
    // Several headers are one list (RFC 9110 section 5.3).
    for value in headers.get_all(name).iter().rev() {
        // What a client has made up need not be text; a proxy adds to it all the same.
        let text = String::from_utf8_lossy(value.as_bytes());
        let entries = match believed {
            ForwardedHeader::Forwarded => split_from_the_right(&text, b','),
            ForwardedHeader::XForwardedFor | ForwardedHeader::Off => text.rsplit(',').collect(),
        };
        for entry in entries {
            let address = match believed {
                // An empty entry means nothing (RFC 9110 section 5.6.1).
                _ if entry.trim().is_empty() => continue,
                ForwardedHeader::Forwarded => forwarded_for(entry),
                ForwardedHeader::XForwardedFor | ForwardedHeader::Off => address(entry.trim()),
            };
            left -= 1;
            if !walk(address) || left == 0 {
                return known;
            }
        }
    }
    known
}

/// The parts of `text` between those `separator`s that do not stand in a quoted string (RFC 9110 section
/// 5.6.4), the rightmost first. Read from the right, so that a quotation which a client has opened and
/// not closed does not swallow what a proxy has added behind it.
fn split_from_the_right(text: &str, separator: u8) -> Vec<&str> {
    let bytes = text.as_bytes();
    let is_escaped = |at: usize| {
        let backslashes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        backslashes % 2 == 1
    };
    let (mut parts, mut end, mut is_quoted) = (Vec::new(), bytes.len(), false);
    for at in (0..bytes.len()).rev() {
        match bytes[at] {
            b'"' if !is_quoted || !is_escaped(at) => is_quoted = !is_quoted,
            byte if byte == separator && !is_quoted => {
                parts.push(&text[at + 1..end]);
                end = at;
            }
            _ => {}
        }
    }
    parts.push(&text[..end]);
    parts
}

/// The address of `for=` in one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_from_the_right(element, b';') {
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        if name.trim().eq_ignore_ascii_case("for") {
            // A parameter may be there once (section 4).
            if found.is_some() {
                return None;
            }
            found = Some(unquoted(value.trim())?);
        }
    }
    address(&found?)
}

/// The content of a quoted string, or a token as it is. `None` where it is neither.
fn unquoted(value: &str) -> Option<String> {
    let Some(rest) = value.strip_prefix('"') else {
        return (!value.contains('"')).then(|| value.to_owned());
    };
    let mut content = String::new();
    let mut letters = rest.strip_suffix('"')?.chars();
    while let Some(letter) = letters.next() {
        content.push(if letter == '\\' { letters.next()? } else { letter });
    }
    Some(content)
}

/// An address as proxies write it: alone or with a port, IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    // A port may also be a name that hides one: `192.0.2.1:_hidden` (RFC 7239 section 6.2).
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (IpAddr::V6(host.parse::<Ipv6Addr>().ok()?), port.strip_prefix(':'))
        }
        None => {
            let (host, port) = text.split_once(':')?;
            (IpAddr::V4(host.parse().ok()?), Some(port))
        }
    };
    let is_hidden = |port: &str| {
        port.strip_prefix('_').is_some_and(|name| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        })
    };
    match port {
        None => text.ends_with(']').then(|| host.to_canonical()),
        Some(port) => is_hidden(port).then(|| host.to_canonical()),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn trusted() -> TrustedProxies {
        let proxies = ["10.0.0.0/8", "fd00::/8"];
        TrustedProxies::new(proxies.iter().map(|proxy| proxy.parse().unwrap()).collect())
    }

    fn client(believed: ForwardedHeader, headers: &[(&'static str, &str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            map.append(HeaderName::from_static(name), value);
        }
        client_address(&map, believed, &trusted()).map(|address| address.to_string())
    }

    /// The client by `X-Forwarded-For` headers with these values.
    fn x_forwarded_for(values: &[&str]) -> Option<String> {
        let headers: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
        client(ForwardedHeader::XForwardedFor, &headers)
    }

    /// The client by `Forwarded` headers with these values.
    fn forwarded(values: &[&str]) -> Option<String> {
        let headers: Vec<_> = values.iter().map(|value| ("forwarded", *value)).collect();
        client(ForwardedHeader::Forwarded, &headers)
    }

    #[test]
    fn bytes_that_a_client_has_made_up_hide_nothing_that_a_proxy_adds_behind_them() {
        for made_up in [&b"\xe9"[..], b"\xff\xfe", "né".as_bytes()] {
            for (name, believed, added) in [
                ("x-forwarded-for", ForwardedHeader::XForwardedFor, &b", 192.0.2.1"[..]),
                ("forwarded", ForwardedHeader::Forwarded, b", for=192.0.2.1"),
            ] {
                let value = HeaderValue::from_bytes(&[made_up, added].concat()).unwrap();
                let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value)]);
                let client = client_address(&headers, believed, &trusted());
                assert_eq!(client, Some("192.0.2.1".parse().unwrap()), "{made_up:?}");
            }
        }
    }

    #[test]
    fn rightmost_address_that_is_no_trusted_proxy_is_the_client() {
        for (values, expected) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
            (&["203.0.113.9, 192.0.2.1, 10.0.0.1,10.0.0.2"], "192.0.2.1"),
            (&["203.0.113.9, 192.0.2.1", "10.0.0.1", "fd00::1, 10.0.0.2"], "192.0.2.1"),
            (&["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
            (&["::ffff:192.0.2.1, ::ffff:10.0.0.1"], "192.0.2.1"),
            (&["192.0.2.1:4711, 10.0.0.1:80"], "192.0.2.1"),
            (&["[2001:db8::1]:4711, [fd00::1]"], "2001:db8::1"),
            (&[" 2001:db8::1\t,, ,10.0.0.1,"], "2001:db8::1"),
            // All are trusted: a client within.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            assert_eq!(x_forwarded_for(values).as_deref(), Some(expected), "{values:?}");
        }
        assert_eq!(x_forwarded_for(&[]), None);
        assert_eq!(x_forwarded_for(&["", " , "]), None);
    }

    #[test]
    fn entry_that_is_no_address_ends_the_walk_at_what_is_known() {
        for (values, expected) in [
            (&["192.0.2.1, unknown"][..], None),
            (&["192.0.2.1, unknown, 10.0.0.1"], Some("10.0.0.1")),
            (&["192.0.2.1, \"10.0.0.2\", 10.0.0.1"], Some("10.0.0.1")),
            (&["192.0.2.1, 10.0.0.256"], None),
            (&["192.0.2.1", "_hidden", "10.0.0.1"], Some("10.0.0.1")),
            (&["192.0.2.1:80:80"], None),
            (&["[2001:db8::1"], None),
            (&["[192.0.2.1]:80"], None),
        ] {
            assert_eq!(x_forwarded_for(values).as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (values, expected) in [
            (&["for=192.0.2.1"][..], "192.0.2.1"),
            (&["For=192.0.2.1;proto=https;by=203.0.113.43"], "192.0.2.1"),
            (&["proto=https; host=\"a,b;for=1.2.3.4\"; FOR = 192.0.2.1"], "192.0.2.1"),
            (&["for=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=\"[2001:db8:cafe::17]\", for=10.0.0.1"], "2001:db8:cafe::17"),
            (&["for=\"192.0.2.1:_port\""], "192.0.2.1"),
            (&["for=\"192\\.0.2.1\""], "192.0.2.1"),
            (
                &["for=203.0.113.9", "for=192.0.2.1, for=\"10.0.0.1:80\"", "for=10.0.0.2"],
                "192.0.2.1",
            ),
        ] {
            assert_eq!(forwarded(values).as_deref(), Some(expected), "{values:?}");
        }
        for (values, expected) in [
            (&["for=192.0.2.1, for=unknown"][..], None),
            (&["for=192.0.2.1, for=_hidden, for=10.0.0.1"], Some("10.0.0.1")),
            (&["for=192.0.2.1, proto=https"], None),
            (&["for=192.0.2.1;for=192.0.2.2"], None),
            (&["for=\"192.0.2.1"], None),
            (&["for=192.0.2.1\""], None),
            // A quotation that a client has opened.
            (&["for=\"192.0.2.1, for=10.0.0.1"], Some("10.0.0.1")),
            (&["for=192.0.2.1", "for=\"", "for=10.0.0.1"], Some("10.0.0.1")),
            (&["for=\"\\"], None),
            (&[], None),
        ] {
            assert_eq!(forwarded(values).as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn only_the_header_that_is_believed_counts() {
        let both = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.2")];
        for (believed, expected) in [
            (ForwardedHeader::Off, None),
            (ForwardedHeader::XForwardedFor, Some("192.0.2.1")),
            (ForwardedHeader::Forwarded, Some("192.0.2.2")),
        ] {
            assert_eq!(client(believed, &both).as_deref(), expected);
        }
    }

    #[test]
    fn endless_list_of_proxies_is_not_walked_to_its_end() {
        let list = format!("192.0.2.1, {}", vec!["10.0.0.1"; 1_000].join(", "));
        assert_eq!(x_forwarded_for(&[&list]).as_deref(), Some("10.0.0.1"));
    }

    proptest! {
        /// What a client sends stands left of what the first proxy adds, and changes nothing.
        #[test]
        fn nothing_that_a_client_sends_is_taken_for_its_address(
            sent in "[ -~]{0,40}", client in any::<[u8; 4]>(), quoted: bool,
        ) {
            let client = IpAddr::from(client);
            prop_assume!(!trusted().trusts_address(client));
            let shown = Some(client.to_string());
            let separately = [sent.as_str(), &format!("{client}, 10.0.0.1")];
            prop_assert_eq!(&x_forwarded_for(&separately), &shown);
            let together = format!("{sent}, {client}, 10.0.0.1");
            prop_assert_eq!(&x_forwarded_for(&[&together]), &shown);
            let element =
                if quoted { format!("for=\"{client}:1\"") } else { format!("for={client}") };
            prop_assert_eq!(&forwarded(&[&sent, &format!("{element}, for=10.0.0.1")]), &shown);
            let together = format!("{sent}, {element};host=\"a\\\",b\", for=10.0.0.1");
            prop_assert_eq!(&forwarded(&[&together]), &shown);
        }
    }
}
