//! The header that a trusted proxy begins a connection with.

use std::net::IpAddr;

use wsgate::admission::proxy_protocol::{MAX_V1_BYTES, MAX_V2_BYTES, ProxyHeader, Source};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Checks [`ProxyHeader::parse`] with what a connection begins with.
///
/// In whichever pieces it comes it is the same header or refused alike, within the bound; what follows
/// changes nothing; the address is the one that the specification says where it stands.
pub fn proxy_protocol(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    let known = (0..=data.len()).find(|end| ProxyHeader::parse(&data[..*end]) != Ok(None));
    match known {
        None => {
            assert_eq!(whole, Ok(None));
            assert!(data.len() < MAX_V2_BYTES, "more than the longest header and not whole");
        }
        Some(end) => {
            assert_eq!(ProxyHeader::parse(&data[..end]), whole, "known after {end} bytes");
            let more = [data, b"GET / HTTP/1.1\r\n\r\n\n"].concat();
            assert_eq!(ProxyHeader::parse(&more), whole, "with more behind it");
        }
    }
    match whole {
        Err(error) => assert!(error.to_string().len() < 256, "{error}"),
        Ok(None) => {}
        Ok(Some(ProxyHeader { bytes, source })) => {
            assert_eq!(known, Some(bytes), "it is whole with its last byte");
            match data.strip_prefix(V2) {
                Some(rest) => assert_v2(rest, bytes, source),
                None => assert_v1(&data[..bytes], source),
            }
        }
    }
}

fn assert_v1(header: &[u8], source: Source) {
    assert!(header.len() <= MAX_V1_BYTES);
    let line = header.strip_suffix(b"\r\n").expect("a whole line");
    if line == b"PROXY UNKNOWN" || line.starts_with(b"PROXY UNKNOWN ") {
        // Whatever else it says.
        return assert_eq!(source, Source::Unnamed);
    }
    let text = std::str::from_utf8(line).expect("it was taken");
    let words: Vec<&str> = text.split(' ').collect();
    match (words[1], source) {
        ("TCP4" | "TCP6", Source::Address(address)) => {
            let said: IpAddr = words[2].parse().expect("it was read before");
            assert_eq!(address, said.to_canonical());
        }
        _ => panic!("{text:?} is not {source:?}"),
    }
}

/// `rest` follows the signature.
fn assert_v2(rest: &[u8], bytes: usize, source: Source) {
    assert_eq!(bytes, 16 + usize::from(u16::from_be_bytes([rest[2], rest[3]])));
    assert!(bytes <= MAX_V2_BYTES);
    let named: Option<IpAddr> = match rest[..2] {
        [0x21, 0x11] => rest[4..].first_chunk::<4>().map(|address| (*address).into()),
        [0x21, 0x21] => rest[4..].first_chunk::<16>().map(|address| (*address).into()),
        _ => None,
    };
    let expected = named.map_or(Source::Unnamed, |named| Source::Address(named.to_canonical()));
    assert_eq!(source, expected);
}
