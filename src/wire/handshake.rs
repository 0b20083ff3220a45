//! The rules of the opening handshake (RFC 6455 section 4.2.1), over a parsed HTTP request.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version};
use thiserror::Error;

/// Why a request on a WebSocket path is no opening handshake. The text is for the person who made
/// the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// 405.
    #[error("a WebSocket connection is opened with GET")]
    Method,
    /// 400.
    #[error("a WebSocket connection needs HTTP/1.1; this request came as HTTP/1.0")]
    HttpVersion,
    /// 400.
    #[error("the request must have one Host header, with a host and perhaps a port")]
    Host,
    /// 400.
    #[error(
        "this is a WebSocket endpoint and the request has no `Upgrade: websocket` header; connect \
         with a WebSocket client"
    )]
    Upgrade,
    /// 400.
    #[error("the request has no `Connection: Upgrade` header; does a proxy on the way drop it?")]
    Connection,
    /// 400.
    #[error("the request must have one Sec-WebSocket-Key header")]
    KeyMissing,
    /// 400.
    #[error("Sec-WebSocket-Key is not 16 bytes in base64")]
    KeyMalformed,
    /// 426, with `Sec-WebSocket-Version: 13`.
    #[error(
        "this server speaks version 13 of the WebSocket protocol only: the request must have one `Sec-WebSocket-Version: 13` header"
    )]
    ProtocolVersion,
    /// 400.
    #[error("an opening handshake has no body")]
    Body,
    /// 400.
    #[error(
        "this is a WebSocket endpoint: over HTTP/2 a connection is opened with CONNECT and \
         `:protocol` websocket (RFC 8441)"
    )]
    ExtendedConnect,
    /// 501.
    #[error("the only `:protocol` that is spoken here is websocket")]
    Protocol,
}

/// Checks everything that section 4.2.1 asks of a request, and that it has no body: the bytes behind
/// an upgrade request are frames, and nothing else may claim them.
///
/// # Errors
///
/// The first thing that is wrong, in the order in which a person would mend it.
pub fn check(method: &Method, version: Version, headers: &HeaderMap) -> Result<(), HandshakeError> {
    if method != Method::GET {
        return Err(HandshakeError::Method);
    }
    if version < Version::HTTP_11 {
        return Err(HandshakeError::HttpVersion);
    }
    if !is_upgrade(headers) {
        return Err(HandshakeError::Upgrade);
    }
    if !lists_token(headers, CONNECTION, "upgrade") {
        return Err(HandshakeError::Connection);
    }
    check_host(headers)?;
    match single(headers, SEC_WEBSOCKET_VERSION) {
        Some(b"13") => {}
        _ => return Err(HandshakeError::ProtocolVersion),
    }
    let key = single(headers, SEC_WEBSOCKET_KEY).ok_or(HandshakeError::KeyMissing)?;
    if !is_base64_of_16_bytes(key) {
        return Err(HandshakeError::KeyMalformed);
    }
    let has_length = headers.get_all(CONTENT_LENGTH).iter().any(|value| value.as_bytes() != b"0");
    if has_length || headers.contains_key(TRANSFER_ENCODING) {
        return Err(HandshakeError::Body);
    }
    Ok(())
}

/// Checks everything that RFC 8441 section 5 asks of a request over HTTP/2: there the method and
/// `protocol` (the pseudo-header `:protocol`) do what `Upgrade` and `Connection` do in HTTP/1.1, and
/// there is no `Sec-WebSocket-Key`.
///
/// # Errors
///
/// The first thing that is wrong, in the order in which a person would mend it.
pub fn check_http2(
    method: &Method,
    protocol: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), HandshakeError> {
    if method == Method::GET {
        return Err(HandshakeError::ExtendedConnect);
    }
    if method != Method::CONNECT {
        return Err(HandshakeError::Method);
    }
    match protocol {
        None => return Err(HandshakeError::ExtendedConnect),
        Some("websocket") => {}
        Some(_) => return Err(HandshakeError::Protocol),
    }
    match single(headers, SEC_WEBSOCKET_VERSION) {
        Some(b"13") => Ok(()),
        _ => Err(HandshakeError::ProtocolVersion),
    }
}

/// Whether a request asks for a WebSocket, well or not.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    lists_token(headers, UPGRADE, "websocket")
}

/// Checks the one thing that is asked of every request, also of one for a page: to which host it goes
/// (RFC 9112 section 3.2).
///
/// # Errors
///
/// There is no such header, or more than one, or it cannot be one.
pub fn check_host(headers: &HeaderMap) -> Result<(), HandshakeError> {
    if single(headers, HOST).is_some_and(is_host) { Ok(()) } else { Err(HandshakeError::Host) }
}

/// Whether one of the comma-separated values of `name` is `token`, in any case.
fn lists_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// The value of `name` if it is there once and only once.
fn single(headers: &HeaderMap, name: http::HeaderName) -> Option<&[u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

/// Whether no byte stands in `value` that cannot be part of `uri-host [ ":" port ]`. Either may be
/// empty. RFC 9112 section 3.2 wants everything else refused: what a proxy in front made of it might
/// be another host than what we make of it.
fn is_host(value: &[u8]) -> bool {
    let is_in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
    let colon = value.iter().rposition(|byte| *byte == b':');
    // The colons of an IPv6 address stand in brackets.
    let (host, port) = match colon.filter(|colon| !value[*colon..].contains(&b']')) {
        Some(colon) => (&value[..colon], &value[colon + 1..]),
        None => (value, &[][..]),
    };
    let is_host = match host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")) {
        Some(address) => address.iter().all(|byte| is_in_name(byte) || *byte == b':'),
        None => host.iter().all(is_in_name),
    };
    is_host && port.iter().all(u8::is_ascii_digit)
}

/// 16 bytes in base64: 22 digits, of which the last has its lowest four bits clear, and `==`.
fn is_base64_of_16_bytes(key: &[u8]) -> bool {
    use base64::Engine;
    let mut nonce = [0; 18];
    base64::engine::general_purpose::STANDARD.decode_slice(key, &mut nonce) == Ok(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(changes: &[(&'static str, Option<&'static str>)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "example.com"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        for (name, value) in changes {
            match value {
                Some(value) => _ = headers.insert(*name, value.parse().unwrap()),
                None => _ = headers.remove(*name),
            }
        }
        headers
    }

    fn verdict(changes: &[(&'static str, Option<&'static str>)]) -> Result<(), HandshakeError> {
        check(&Method::GET, Version::HTTP_11, &request(changes))
    }

    #[test]
    fn example_of_the_rfc_passes() {
        assert_eq!(verdict(&[]), Ok(()));
    }

    #[test]
    fn over_http2_the_method_and_the_protocol_make_the_handshake() {
        let headers = request(&[
            ("upgrade", None),
            ("connection", None),
            ("host", None),
            ("sec-websocket-key", None),
        ]);
        let verdict = |method, protocol| check_http2(&method, protocol, &headers);
        assert_eq!(verdict(Method::CONNECT, Some("websocket")), Ok(()));
        for (method, protocol, error) in [
            (Method::GET, None, HandshakeError::ExtendedConnect),
            (Method::CONNECT, None, HandshakeError::ExtendedConnect),
            (Method::CONNECT, Some("connect-udp"), HandshakeError::Protocol),
            (Method::POST, None, HandshakeError::Method),
        ] {
            assert_eq!(verdict(method, protocol), Err(error));
        }
        let unversioned = HeaderMap::new();
        assert_eq!(
            check_http2(&Method::CONNECT, Some("websocket"), &unversioned),
            Err(HandshakeError::ProtocolVersion)
        );
    }

    #[test]
    fn tokens_are_found_in_any_case_and_among_others() {
        let changes =
            [("connection", Some("keep-alive, UPGRADE")), ("upgrade", Some("h2c, WebSocket"))];
        assert_eq!(verdict(&changes), Ok(()));
    }

    #[test]
    fn each_missing_or_wrong_part_is_named() {
        let cases = [
            ("upgrade", None, HandshakeError::Upgrade),
            ("upgrade", Some("h2c"), HandshakeError::Upgrade),
            ("connection", Some("keep-alive"), HandshakeError::Connection),
            ("host", None, HandshakeError::Host),
            ("sec-websocket-version", None, HandshakeError::ProtocolVersion),
            ("sec-websocket-version", Some("8"), HandshakeError::ProtocolVersion),
            ("sec-websocket-version", Some("013"), HandshakeError::ProtocolVersion),
            ("sec-websocket-key", None, HandshakeError::KeyMissing),
            ("sec-websocket-key", Some("short=="), HandshakeError::KeyMalformed),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZSE="), HandshakeError::KeyMalformed),
            ("content-length", Some("5"), HandshakeError::Body),
            ("transfer-encoding", Some("chunked"), HandshakeError::Body),
        ];
        for (name, value, error) in cases {
            assert_eq!(verdict(&[(name, value)]), Err(error), "{name}: {value:?}");
        }
    }

    #[test]
    fn host_is_a_name_or_an_address_and_perhaps_a_port() {
        let good = ["", "example.com:", "Example.com:8080", "127.0.0.1:80", "[::1]", "[::1]:8080"];
        for value in good {
            assert_eq!(verdict(&[("host", Some(value))]), Ok(()), "{value:?}");
        }
        let bad = [
            "two hosts",
            "a.example, b.example",
            "user@example.com",
            "example.com/echo",
            "http://example.com",
            "example.com:http",
            "example.com:-80",
            "a:1:2",
            "::1",
            "[::1",
            "[::1]x:80",
            "example.com?",
        ];
        for value in bad {
            let error = Err(HandshakeError::Host);
            assert_eq!(verdict(&[("host", Some(value))]), error, "{value:?}");
        }
    }

    #[test]
    fn header_that_must_be_single_is_refused_twice() {
        for (name, error) in [
            ("sec-websocket-key", HandshakeError::KeyMissing),
            ("sec-websocket-version", HandshakeError::ProtocolVersion),
            ("host", HandshakeError::Host),
        ] {
            let mut headers = request(&[]);
            let value = headers[name].clone();
            headers.append(name, value);
            assert_eq!(check(&Method::GET, Version::HTTP_11, &headers), Err(error), "{name}");
        }
    }

    #[test]
    fn method_and_http_version_are_checked() {
        let headers = request(&[]);
        assert_eq!(check(&Method::POST, Version::HTTP_11, &headers), Err(HandshakeError::Method));
        assert_eq!(
            check(&Method::GET, Version::HTTP_10, &headers),
            Err(HandshakeError::HttpVersion)
        );
    }
}
