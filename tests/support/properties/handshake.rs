//! The head of a request that wants to become a WebSocket connection.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use wsgate::wire::handshake::{HandshakeError, check};

/// Checks [`check`] with one input: the head of a request as HTTP/1 writes it, of which lines that are
/// no header are left out.
///
/// A request that is refused breaks the rule that it is told, one that is not breaks none; in
/// whichever order its headers stand. The crate that makes the answer takes it too.
pub fn handshake(data: &[u8]) {
    let Some(head) = Head::parse(data) else {
        return;
    };
    let verdict = head.check();
    match verdict {
        Ok(()) => {
            for rule in RULES {
                assert!(!head.breaks(rule), "accepted, but {rule}");
            }
            head.assert_it_can_be_answered();
        }
        Err(rule) => {
            assert!(head.breaks(rule), "refused, but not: {rule}");
            assert!(rule.to_string().len() < 256);
        }
    }
    let mut reversed = head;
    reversed.lines.reverse();
    assert_eq!(reversed.check(), verdict, "in another order");
    reversed.lines.push((HeaderName::from_static("x-more"), HeaderValue::from_static("upgrade")));
    assert_eq!(reversed.check(), verdict, "with a header that means nothing here");
}

const RULES: [HandshakeError; 9] = [
    HandshakeError::Method,
    HandshakeError::HttpVersion,
    HandshakeError::Host,
    HandshakeError::Upgrade,
    HandshakeError::Connection,
    HandshakeError::KeyMissing,
    HandshakeError::KeyMalformed,
    HandshakeError::ProtocolVersion,
    HandshakeError::Body,
];

struct Head {
    method: Method,
    version: Version,
    lines: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    fn parse(data: &[u8]) -> Option<Self> {
        let mut lines = data.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
        let mut first = lines.next()?.split(|byte| *byte == b' ');
        let method = Method::from_bytes(first.next()?).ok()?;
        let version = match first.next_back()? {
            b"HTTP/1.0" => Version::HTTP_10,
            _ => Version::HTTP_11,
        };
        let lines = lines.filter_map(|line| {
            let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
            let name = HeaderName::from_bytes(name).ok()?;
            Some((name, HeaderValue::from_bytes(value[1..].trim_ascii()).ok()?))
        });
        // More than hyper takes are not looked at.
        Some(Self { method, version, lines: lines.take(100).collect() })
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.lines {
            headers.append(name, value.clone());
        }
        headers
    }

    fn check(&self) -> Result<(), HandshakeError> {
        check(&self.method, self.version, &self.headers())
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        let lines = self.lines.iter().filter(|(found, _)| found == name);
        lines.map(|(_, value)| value.as_bytes()).collect()
    }

    /// RFC 6455 section 4.2.1, one rule at a time.
    fn breaks(&self, rule: HandshakeError) -> bool {
        match rule {
            HandshakeError::Method => self.method != Method::GET,
            HandshakeError::HttpVersion => self.version == Version::HTTP_10,
            HandshakeError::Host => match self.values("host")[..] {
                [host] => !is_host(host),
                _ => true,
            },
            HandshakeError::Upgrade => !self.lists("upgrade", "websocket"),
            HandshakeError::Connection => !self.lists("connection", "upgrade"),
            HandshakeError::KeyMissing => self.values("sec-websocket-key").len() != 1,
            HandshakeError::KeyMalformed => {
                !self.values("sec-websocket-key").into_iter().all(is_16_bytes_in_base64)
            }
            HandshakeError::ProtocolVersion => {
                self.values("sec-websocket-version") != [b"13".as_slice()]
            }
            HandshakeError::Body => {
                !self.values("transfer-encoding").is_empty()
                    || self.values("content-length").iter().any(|length| *length != b"0")
            }
            // Rules of HTTP/2.
            HandshakeError::ExtendedConnect | HandshakeError::Protocol => false,
        }
    }

    /// Whether a list of tokens has this one. Bytes that HTTP leaves to nobody make no list.
    fn lists(&self, name: &str, token: &str) -> bool {
        let is_text = |value: &&[u8]| value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
        let values = self.values(name).into_iter().filter(is_text);
        let mut tokens = values.flat_map(|value| value.split(|byte| *byte == b','));
        tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    fn assert_it_can_be_answered(&self) {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers();
        let (answer, _) =
            fastwebsockets::upgrade::upgrade(&mut request).expect("it can be answered");
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        let accept = &answer.headers()["sec-websocket-accept"];
        assert_eq!(accept.len(), 28, "20 bytes in base64");
    }
}

/// `uri-host [ ":" port ]` of RFC 9112 section 3.2, with either empty, and as far as single bytes tell.
fn is_host(value: &[u8]) -> bool {
    let is_in_name = |byte: &u8| byte.is_ascii_graphic() && !b"\"#/:<>?@[\\]^`{|}".contains(byte);
    let (host, rest, may_have_colons) = if let Some(address) = value.strip_prefix(b"[") {
        let Some(end) = address.iter().position(|byte| *byte == b']') else {
            return false;
        };
        (&address[..end], &address[end + 1..], true)
    } else {
        let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
        (&value[..end], &value[end..], false)
    };
    host.iter().all(|byte| is_in_name(byte) || may_have_colons && *byte == b':')
        && match rest {
            [] => true,
            [b':', port @ ..] => port.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

fn is_16_bytes_in_base64(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key {
        [digits @ .., last, b'=', b'='] => {
            // The last digit stands for two bits.
            digits.len() == 21 && digits.iter().all(is_digit) && b"AQgw".contains(last)
        }
        _ => false,
    }
}
