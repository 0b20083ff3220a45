//! permessage-deflate (RFC 7692) as a client has it: the offer, and what the server makes of it.

use thiserror::Error;

use crate::client::text;
use crate::wire::extensions::WindowBits;

/// What is offered, as browsers do: the server may have each message refer to those before it, and
/// may ask for a smaller window of this client.
pub(super) const OFFER: &str = "permessage-deflate; client_max_window_bits";

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The server's messages refer to earlier ones.
    pub(super) server_takeover: bool,
    /// How far back the server's messages refer.
    pub(super) server_window: WindowBits,
    /// How far back this client's messages may refer.
    pub(super) client_window: WindowBits,
}

/// An answer that nobody may give to the offer (section 7.1).
#[derive(Debug, PartialEq, Eq, Error)]
#[error("the server answered the extensions \"{}\", which were not offered", text::escaped(.0))]
pub(super) struct UnknownExtension(String);

/// Reads the server's `Sec-WebSocket-Extensions`.
pub(super) fn agreed(answer: &str) -> Result<Agreed, UnknownExtension> {
    parse(answer).ok_or_else(|| UnknownExtension(answer.to_owned()))
}

fn parse(answer: &str) -> Option<Agreed> {
    let mut parts = answer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut agreed = Agreed {
        server_takeover: true,
        server_window: WindowBits::MAX,
        client_window: WindowBits::MAX,
    };
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        let bits = || WindowBits::new(value?.parse().ok()?);
        match name {
            "server_no_context_takeover" if value.is_none() => agreed.server_takeover = false,
            // Each message of this client stands alone anyway.
            "client_no_context_takeover" if value.is_none() => {}
            "server_max_window_bits" => agreed.server_window = bits()?,
            "client_max_window_bits" => agreed.client_window = bits()?,
            _ => return None,
        }
    }
    Some(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_says_how_far_back_each_side_refers() {
        let all = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                   server_max_window_bits=12; client_max_window_bits=\"9\"";
        let expected = Agreed {
            server_takeover: false,
            server_window: WindowBits::new(12).expect("it is one"),
            client_window: WindowBits::new(9).expect("it is one"),
        };
        assert_eq!(agreed(all), Ok(expected));
        let plain = agreed("permessage-deflate").expect("no parameter is needed");
        assert!(plain.server_takeover);
        assert_eq!(plain.server_window, WindowBits::MAX);
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        for answer in [
            "",
            "x-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate, permessage-deflate",
        ] {
            assert_eq!(agreed(answer), Err(UnknownExtension(answer.to_owned())), "{answer}");
        }
        let told = agreed("x\u{9b}31m\u{202e}").expect_err("it is none").to_string();
        assert!(!told.contains(['\u{9b}', '\u{202e}']), "{told}");
    }
}
