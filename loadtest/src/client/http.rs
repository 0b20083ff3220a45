//! The two uses of HTTP: the opening handshake (RFC 6455 section 4.1), and publishing.

use thiserror::Error;

use crate::client::deflate::{self, Agreed};

/// The sample nonce of RFC 6455 section 1.3 and the answer to it. A nonce keeps caches from answering;
/// there are none between a load test and its server.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The request for a WebSocket at `path`.
pub(crate) fn handshake(path: &str, host: &str, headers: &[String]) -> String {
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// A publication by the HTTP API, in Centrifugo's shape.
pub(crate) fn publish(host: &str, channel: &str, data: &str, key: Option<&str>) -> String {
    let body = serde_json::json!({ "channel": channel, "data": data }).to_string();
    let key = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
    format!(
        "POST /api/publish HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{key}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A whole response at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Seconds of `Retry-After`.
    pub(crate) retry_after: Option<u64>,
    /// The body says that something is wrong.
    pub(crate) has_error: bool,
    /// What a 101 says about compression.
    pub(crate) agreed: Option<Agreed>,
    /// Of the response, with its body.
    pub(crate) bytes: usize,
}

/// Why a response cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ResponseError {
    /// Not HTTP.
    #[error("the response is not HTTP")]
    Syntax,
    /// A 101 without the right `Sec-WebSocket-Accept`, or an extension that nobody offers.
    #[error("the handshake was answered wrongly")]
    Handshake,
}

/// Reads a response; `None` while a part of it is missing. Of a 101 there is no body.
pub(crate) fn response(input: &[u8]) -> Result<Option<Response>, ResponseError> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    let head = match parsed.parse(input) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(ResponseError::Syntax),
    };
    let status = parsed.code.ok_or(ResponseError::Syntax)?;
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    let number =
        |name: &str| header(name).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    if status == 101 {
        if header("sec-websocket-accept") != Some(ACCEPT) {
            return Err(ResponseError::Handshake);
        }
        let agreed = header("sec-websocket-extensions")
            .map(|extensions| std::str::from_utf8(extensions).ok().and_then(deflate::agreed));
        let agreed = match agreed {
            Some(None) => return Err(ResponseError::Handshake),
            Some(agreed) => agreed,
            None => None,
        };
        let (retry_after, has_error, bytes) = (None, false, head);
        return Ok(Some(Response { status, retry_after, has_error, agreed, bytes }));
    }
    let length = number("content-length").unwrap_or(0) as usize;
    let Some(body) = input.get(head..head.saturating_add(length)) else {
        return Ok(None);
    };
    let has_error = body.windows(8).any(|window| window == b"\"error\":");
    let retry_after = number("retry-after");
    let bytes = head + length;
    Ok(Some(Response { status, retry_after, has_error, agreed: None, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_read_once_it_is_whole_and_not_before() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 5\r\n\r\nbusy\n";
        for split in 0..text.len() {
            assert_eq!(response(&text[..split]), Ok(None), "{split}");
        }
        let expected = Response {
            status: 503,
            retry_after: Some(2),
            has_error: false,
            agreed: None,
            bytes: text.len(),
        };
        assert_eq!(response(text), Ok(Some(expected)));
    }

    #[test]
    fn handshake_needs_the_right_answer() {
        let right = format!(
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {}\r\n\r\nrest",
            std::str::from_utf8(ACCEPT).unwrap()
        );
        assert_eq!(response(right.as_bytes()).unwrap().unwrap().bytes, right.len() - 4);
        let wrong = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n";
        assert_eq!(response(wrong), Err(ResponseError::Handshake));
        let extended =
            right.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
        let agreed = response(extended.as_bytes()).unwrap().unwrap().agreed;
        assert_eq!(agreed, Some(Agreed { keeps_window: true, limits_client: false }));
        let unknown = extended.replace("permessage-deflate", "permessage-zip");
        assert_eq!(response(unknown.as_bytes()), Err(ResponseError::Handshake));
        assert_eq!(response(b"SSH-2.0-x\r\n"), Err(ResponseError::Syntax));
    }

    #[test]
    fn publication_is_json_with_its_length() {
        let request = publish("h", "a\"b", "text", Some("key"));
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, r#"{"channel":"a\"b","data":"text"}"#);
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(head.contains("X-API-Key: key"));
    }
}
