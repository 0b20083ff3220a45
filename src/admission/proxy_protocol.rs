//! The header in which a proxy says for whom it opened a connection: the PROXY protocol of HAProxy,
//! versions 1 and 2 (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! The crate `ppp` reads a header that is whole. What is here finds out where it ends, so that not a
//! byte behind it is taken, and how long it may be.

use std::net::IpAddr;

use thiserror::Error;

/// The longest header of version 1 in bytes (section 2.1).
pub const MAX_V1_BYTES: usize = 107;

/// The longest header of version 2 that is taken, in bytes. Its addresses need at most 232; what follows
/// them (names, certificates of TLS that was ended in front of us) is not looked at.
pub const MAX_V2_BYTES: usize = 4_096;

/// How a header of version 1 begins.
const V1_PREFIX: &[u8] = b"PROXY ";

/// How a header of version 2 begins, up to its length.
const V2_FIXED_BYTES: usize = 16;

/// Version 2 and the command LOCAL, behind the signature.
const V2_LOCAL: u8 = 0x20;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The connection is for a client with this address.
    Address(IpAddr),
    /// It is the proxy's own (LOCAL: a health check), or for a client whose address cannot be told
    /// (UNKNOWN, a Unix socket).
    Unnamed,
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its length in bytes. What follows is the client's.
    pub bytes: usize,
    /// What it says.
    pub source: Source,
}

/// Bytes that are no header. They stay so, whatever follows them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProxyHeaderError {
    /// The client's own first bytes, most often.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// Longer than [`MAX_V1_BYTES`] or [`MAX_V2_BYTES`].
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    /// It begins like one and goes on otherwise.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(String),
}

impl ProxyHeader {
    /// Reads the header at the front of `input`: everything that a connection began with, so far.
    /// `None` while it is not whole; then all of `input` belongs to it.
    ///
    /// # Errors
    ///
    /// It is none, or one that may not be sent.
    pub fn parse(input: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        let begins_like = |prefix: &[u8]| {
            let known = input.len().min(prefix.len());
            input[..known] == prefix[..known]
        };
        if begins_like(V1_PREFIX) {
            parse_v1(input)
        } else if begins_like(ppp::v2::PROTOCOL_PREFIX) {
            parse_v2(input)
        } else {
            Err(ProxyHeaderError::Missing)
        }
    }
}

fn parse_v1(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let within = &input[..input.len().min(MAX_V1_BYTES)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if input.len() >= MAX_V1_BYTES {
            Err(ProxyHeaderError::TooLong(MAX_V1_BYTES))
        } else {
            Ok(None)
        };
    };
    let header = &input[..=end];
    // ppp lets a long UNKNOWN end without it.
    if !header.ends_with(b"\r\n") {
        return Err(ProxyHeaderError::Malformed("its line does not end with CRLF".to_owned()));
    }
    // What comes behind it is to be ignored (section 2.1), and ppp counts its words.
    if header.starts_with(b"PROXY UNKNOWN\r") || header.starts_with(b"PROXY UNKNOWN ") {
        return Ok(Some(ProxyHeader { bytes: header.len(), source: Source::Unnamed }));
    }
    let parsed = ppp::v1::Header::try_from(header)
        .map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    let source = match parsed.addresses {
        ppp::v1::Addresses::Tcp4(addresses) => Source::named(addresses.source_address.into()),
        ppp::v1::Addresses::Tcp6(addresses) => Source::named(addresses.source_address.into()),
        ppp::v1::Addresses::Unknown => Source::Unnamed,
    };
    Ok(Some(ProxyHeader { bytes: header.len(), source }))
}

fn parse_v2(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    use ppp::v2::{Addresses, Command, Header, ParseError, Protocol};

    let Some(fixed) = input.first_chunk::<V2_FIXED_BYTES>() else {
        return Ok(None);
    };
    let bytes = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if bytes > MAX_V2_BYTES {
        return Err(ProxyHeaderError::TooLong(MAX_V2_BYTES));
    }
    // A proxy's own (a health check): whatever address stands there counts for nothing (section 2.2).
    if fixed[12] == V2_LOCAL {
        return Ok((input.len() >= bytes).then_some(ProxyHeader { bytes, source: Source::Unnamed }));
    }
    let header = match Header::try_from(&input[..input.len().min(bytes)]) {
        Ok(header) => header,
        Err(ParseError::Incomplete(_) | ParseError::Partial(..)) => return Ok(None),
        Err(error) => return Err(ProxyHeaderError::Malformed(error.to_string())),
    };
    // A client of UDP cannot be at the other end of TCP; what else is not told is not guessed.
    let source = match (header.command, header.protocol, header.addresses) {
        (Command::Local, ..) => Source::Unnamed,
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(addresses)) => {
            Source::named(addresses.source_address.into())
        }
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(addresses)) => {
            Source::named(addresses.source_address.into())
        }
        (Command::Proxy, Protocol::Unspecified | Protocol::Datagram | Protocol::Stream, _) => {
            Source::Unnamed
        }
    };
    Ok(Some(ProxyHeader { bytes, source }))
}

impl Source {
    fn named(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = ppp::v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((payload.len() as u16).to_be_bytes());
        header.extend(payload);
        header
    }

    fn tcp4() -> Vec<u8> {
        v2(1, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0x10, 0, 0, 80])
    }

    fn tcp6(source: &str) -> Vec<u8> {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        let payload = [&source.octets()[..], &[0; 16], &[0x10, 0, 0, 80]].concat();
        v2(1, 0x21, &payload)
    }

    fn named(address: &str) -> Source {
        Source::Address(address.parse().unwrap())
    }

    #[test]
    fn line_that_ends_without_a_carriage_return_is_refused_whatever_it_says() {
        let long = format!("PROXY UNKNOWN ffff::1 {}\n", "x".repeat(70));
        for line in ["PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", "PROXY UNKNOWN\n", &long] {
            let parsed = ProxyHeader::parse(line.as_bytes());
            assert!(matches!(parsed, Err(ProxyHeaderError::Malformed(_))), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn address_of_a_local_header_counts_for_nothing_not_even_a_broken_one() {
        for (family, payload) in [(0x00, &b""[..]), (0x11, b""), (0x11, b"short"), (0xff, b"?")] {
            let header = v2(0, family, payload);
            let expected = ProxyHeader { bytes: header.len(), source: Source::Unnamed };
            assert_eq!(ProxyHeader::parse(&header), Ok(Some(expected)));
            assert_eq!(ProxyHeader::parse(&header[..header.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn header_split_at_any_byte_waits_for_the_rest_and_takes_nothing_behind_it() {
        let with_tlv = v2(1, 0x11, &[&tcp4()[16..], &[0xea, 0, 3, 1, 2, 3]].concat());
        let unix = v2(1, 0x31, &[0; 216]);
        let cases: [(&[u8], Source); 14] = [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 4096 80\r\n", named("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::1 ::1 65535 1\r\n", named("2001:db8::1")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", named("192.0.2.1")),
            (b"PROXY UNKNOWN\r\n", Source::Unnamed),
            (b"PROXY UNKNOWN ffff:f...f:ffff what ever\r\n", Source::Unnamed),
            (b"PROXY UNKNOWN a b c d e f  \xff g\r\n", Source::Unnamed),
            (&tcp4(), named("192.0.2.1")),
            (&tcp6("2001:db8::1"), named("2001:db8::1")),
            (&tcp6("::ffff:192.0.2.1"), named("192.0.2.1")),
            (&with_tlv, named("192.0.2.1")),
            (&unix, Source::Unnamed),
            (&v2(0, 0x11, &tcp4()[16..]), Source::Unnamed),
            (&v2(0, 0, b""), Source::Unnamed),
            (&v2(1, 0x12, &tcp4()[16..]), Source::Unnamed),
        ];
        for (header, source) in cases {
            for split in 0..header.len() {
                let parsed = ProxyHeader::parse(&header[..split]);
                assert_eq!(parsed, Ok(None), "{header:x?} split at {split}");
            }
            let whole = Ok(Some(ProxyHeader { bytes: header.len(), source }));
            assert_eq!(ProxyHeader::parse(header), whole, "{header:x?}");
            let with_more = [header, b"GET /echo HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(ProxyHeader::parse(&with_more), whole, "{header:x?} and more");
        }
    }

    #[test]
    fn what_is_no_header_is_known_with_the_first_byte_that_shows_it() {
        for input in
            [&b"GET /echo"[..], b"PROXX", b"\x16\x03\x01", b"\r\n\r\n\0\r\nQUIX", b"proxy "]
        {
            assert_eq!(ProxyHeader::parse(input), Err(ProxyHeaderError::Missing), "{input:x?}");
            let at = (1..input.len()).find(|at| ProxyHeader::parse(&input[..*at]).is_err());
            let first = at.unwrap_or(input.len());
            assert_eq!(ProxyHeader::parse(&input[..first - 1]), Ok(None), "{input:x?}");
        }
    }

    #[test]
    fn longest_header_passes_and_one_byte_more_does_not() {
        let filled = |bytes: usize| {
            let mut header = b"PROXY UNKNOWN ".to_vec();
            header.resize(bytes - 2, b'x');
            [&header[..], b"\r\n"].concat()
        };
        assert!(ProxyHeader::parse(&filled(MAX_V1_BYTES)).unwrap().is_some());
        let too_long = Err(ProxyHeaderError::TooLong(MAX_V1_BYTES));
        assert_eq!(ProxyHeader::parse(&filled(MAX_V1_BYTES + 1)), too_long);
        assert_eq!(ProxyHeader::parse(&filled(MAX_V1_BYTES + 1)[..MAX_V1_BYTES]), too_long);
        assert_eq!(ProxyHeader::parse(&filled(MAX_V1_BYTES + 1)[..MAX_V1_BYTES - 1]), Ok(None));

        let longest = v2(1, 0x11, &[&tcp4()[16..], &vec![0; MAX_V2_BYTES - 28]].concat());
        assert_eq!(longest.len(), MAX_V2_BYTES);
        assert!(ProxyHeader::parse(&longest).unwrap().is_some());
        let longer = v2(1, 0x11, &vec![0; MAX_V2_BYTES - V2_FIXED_BYTES + 1]);
        let too_long = Err(ProxyHeaderError::TooLong(MAX_V2_BYTES));
        assert_eq!(ProxyHeader::parse(&longer[..V2_FIXED_BYTES]), too_long, "known by its length");
    }

    #[test]
    fn broken_headers_are_refused() {
        let ends: [&[u8]; 14] = [
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4096 80\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4096\r\n",
            b"PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY TCP4 \xff\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c............",
            b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c............",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x41\0\x0c............",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b...........",
        ];
        for input in ends {
            let parsed = ProxyHeader::parse(input);
            assert!(
                matches!(parsed, Err(ProxyHeaderError::Malformed(_))),
                "{:?}: {parsed:?}",
                String::from_utf8_lossy(input)
            );
        }
    }

    proptest! {
        #[test]
        fn every_address_reads_back_as_itself(address: IpAddr, port: u16) {
            let source = Source::named(address);
            let family = if address.is_ipv4() { "TCP4" } else { "TCP6" };
            let text = format!("PROXY {family} {address} {address} {port} {port}\r\n");
            let bytes = text.len();
            prop_assert_eq!(
                ProxyHeader::parse(text.as_bytes()),
                Ok(Some(ProxyHeader { bytes, source }))
            );
            let header = ppp::v2::Builder::with_addresses(
                0x21,
                ppp::v2::Protocol::Stream,
                (std::net::SocketAddr::new(address, port), std::net::SocketAddr::new(address, port)),
            );
            let header = header.build().unwrap();
            let bytes = header.len();
            prop_assert_eq!(
                ProxyHeader::parse(&header),
                Ok(Some(ProxyHeader { bytes, source }))
            );
        }

        #[test]
        fn any_bytes_mean_the_same_whole_and_piece_by_piece(
            prefix in prop_oneof![
                Just(&b""[..]), Just(V1_PREFIX), Just(ppp::v2::PROTOCOL_PREFIX),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let input = [prefix, &rest].concat();
            let first = (0..=input.len())
                .map(|end| ProxyHeader::parse(&input[..end]))
                .find(|parsed| *parsed != Ok(None));
            prop_assert_eq!(first.unwrap_or(Ok(None)), ProxyHeader::parse(&input));
        }
    }
}
