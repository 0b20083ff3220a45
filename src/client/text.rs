//! What may be shown on a terminal: a message must never control it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Most bytes of a binary message that are shown to a person.
const MAX_SHOWN_BYTES: usize = 64;

/// `text` with everything that would move the cursor, change colours or turn the direction of
/// writing shown as an escape, as in Rust: `\n`, `\u{1b}`. A tab stays.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_unsafe(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// Control characters (C0 with DEL, and C1), separators of lines, and what changes the direction.
fn is_unsafe(letter: char) -> bool {
    letter.is_control() && letter != '\t'
        || matches!(
            letter,
            '\u{061c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// `bytes` in hexadecimal, whole and without blanks.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes everything");
        hex
    })
}

/// A binary message for a person: its length, and its bytes as far as they fit.
pub(super) fn shown_bytes(bytes: &[u8]) -> String {
    let mut shown = match bytes.len() {
        1 => "1 byte:".to_owned(),
        length => format!("{length} bytes:"),
    };
    for byte in bytes.iter().take(MAX_SHOWN_BYTES) {
        write!(shown, " {byte:02x}").expect("a String takes everything");
    }
    if bytes.len() > MAX_SHOWN_BYTES {
        shown.push_str(" …");
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn harmless_text_is_shown_as_it_is() {
        for text in ["", "hello", "a\tb", "grüße, 世界 🎉", "back\\slash"] {
            assert!(matches!(escaped(text), Cow::Borrowed(shown) if shown == text), "{text}");
        }
    }

    #[test]
    fn what_controls_a_terminal_is_shown_as_an_escape() {
        for (text, shown) in [
            ("\x1b[2J\x07", "\\u{1b}[2J\\u{7}"),
            ("two\r\nlines", "two\\r\\nlines"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{7f}\0", "\\u{7f}\\u{0}"),
            ("abc\u{202e}cba", "abc\\u{202e}cba"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn binary_is_shown_with_its_length_and_cut_when_long() {
        assert_eq!(shown_bytes(&[]), "0 bytes:");
        assert_eq!(shown_bytes(&[0x0a]), "1 byte: 0a");
        assert_eq!(shown_bytes(&[0, 255]), "2 bytes: 00 ff");
        let long = shown_bytes(&[7; 65]);
        assert!(long.starts_with("65 bytes: 07 ") && long.ends_with(" 07 …"), "{long}");
        assert_eq!(hex(&[0, 0x1b, 0xff]), "001bff");
    }

    proptest! {
        #[test]
        fn no_text_gets_a_control_character_through(text in any::<String>()) {
            prop_assert!(!escaped(&text).contains(is_unsafe));
        }
    }
}
