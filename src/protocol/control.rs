//! Messages to the gateway itself, on connections that asked for that (`?control=true`): a text that is
//! a JSON object with the one key `refresh` and a token. Every other message is the application's.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::wire::frame;
use crate::wire::header::Opcode;

/// Longest message that may be one, in bytes: a token of 8 KiB, and what stands around it. A longer one
/// is the application's, and is not even looked at.
pub const MAX_CONTROL_BYTES: usize = 9 * 1024;

/// What is asked of the gateway.
#[derive(Clone, PartialEq, Eq)]
pub enum Control {
    /// Go on with this token.
    Refresh {
        /// As it was written.
        token: String,
    },
    /// `refresh` is there, but is no text.
    Malformed,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refresh { .. } => "Refresh(***)",
            Self::Malformed => "Malformed",
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    refresh: Value,
}

/// What a text message with this payload asks of the gateway; `None` where it is the application's.
pub fn parse(payload: &[u8]) -> Option<Control> {
    if payload.len() > MAX_CONTROL_BYTES || !begins(payload) {
        return None;
    }
    let Message { refresh } = serde_json::from_slice(payload).ok()?;
    Some(match refresh {
        Value::String(token) => Control::Refresh { token },
        _ => Control::Malformed,
    })
}

/// Whether its first key is ours. Without this each JSON message of the application would be parsed.
fn begins(payload: &[u8]) -> bool {
    let object = payload.trim_ascii_start().strip_prefix(b"{");
    object.is_some_and(|object| object.trim_ascii_start().starts_with(b"\"refresh\""))
}

/// Says until when the connection may stay, in seconds since 1970; `None` for as long as it likes.
pub fn refreshed(expires_at: Option<u64>) -> Bytes {
    text(&json!({ "refresh": { "expires_at": expires_at } }))
}

/// Says why nothing was done. `code` is one of the API's.
pub fn refused(code: u32, message: &str) -> Bytes {
    text(&json!({ "error": { "code": code, "message": message } }))
}

fn text(value: &Value) -> Bytes {
    frame::encode(Opcode::Text, value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_with_the_one_key_refresh_is_for_the_gateway() {
        let refresh = |token: &str| Some(Control::Refresh { token: token.to_owned() });
        assert_eq!(parse(br#"{"refresh":"a.b.c"}"#), refresh("a.b.c"));
        assert_eq!(parse(b" {\n \"refresh\" : \"a\" } "), refresh("a"));
        assert_eq!(parse(br#"{"refresh":7}"#), Some(Control::Malformed));
        assert_eq!(parse(br#"{"refresh":null}"#), Some(Control::Malformed));
    }

    #[test]
    fn every_other_message_is_the_applications() {
        for message in [
            "",
            "{}",
            "refresh",
            "{\"refresh\":\"a\"",
            "{\"refresh\":\"a\"}x",
            "{\"refresh\":\"a\",\"more\":1}",
            "{\"more\":1,\"refresh\":\"a\"}",
            "{\"refresh\":\"a\",\"refresh\":\"b\"}",
            "[\"refresh\"]",
            "{\"refreshed\":\"a\"}",
        ] {
            assert_eq!(parse(message.as_bytes()), None, "{message}");
        }
        let long = format!("{{\"refresh\":\"{}\"}}", "x".repeat(MAX_CONTROL_BYTES));
        assert_eq!(parse(long.as_bytes()), None);
    }

    #[test]
    fn answers_are_text_frames_of_json() {
        assert_eq!(refreshed(Some(7)), &b"\x81\x1c{\"refresh\":{\"expires_at\":7}}"[..]);
        assert_eq!(refreshed(None), &b"\x81\x1f{\"refresh\":{\"expires_at\":null}}"[..]);
        let refused = refused(101, "no");
        assert_eq!(&refused[2..], br#"{"error":{"code":101,"message":"no"}}"#);
    }

    #[test]
    fn token_is_not_shown() {
        let control = parse(br#"{"refresh":"sesame"}"#).expect("ours");
        assert!(!format!("{control:?}").contains("sesame"));
    }
}
