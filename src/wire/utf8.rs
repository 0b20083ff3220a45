//! UTF-8 over pieces (RFC 6455 section 8.1).

/// Checks text that arrives in pieces, and fails at the first piece that holds a byte which no
/// continuation could make right.
#[derive(Clone, Debug, Default)]
pub struct Utf8Validator {
    /// The first bytes of a character whose rest has not arrived.
    started: [u8; 4],
    /// How many of `started` are in use: 0..=3.
    started_bytes: u8,
}

/// The text cannot become UTF-8, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl Utf8Validator {
    /// Takes the next piece.
    ///
    /// # Errors
    ///
    /// The text so far is not the beginning of any UTF-8 text.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), NotUtf8> {
        while self.started_bytes > 0 {
            let Some((&byte, rest)) = piece.split_first() else {
                return Ok(());
            };
            piece = rest;
            let length = usize::from(self.started_bytes);
            self.started[length] = byte;
            self.started_bytes = match std::str::from_utf8(&self.started[..=length]) {
                Ok(_) => 0,
                Err(error) if error.error_len().is_some() => return Err(NotUtf8),
                // The longest incomplete character has three bytes, so the next one still fits.
                Err(_) => self.started_bytes + 1,
            };
        }
        if let Err(error) = simdutf8::compat::from_utf8(piece) {
            if error.error_len().is_some() {
                return Err(NotUtf8);
            }
            let rest = &piece[error.valid_up_to()..];
            self.started[..rest.len()].copy_from_slice(rest);
            self.started_bytes = rest.len() as u8;
        }
        Ok(())
    }

    /// Whether the text may end here: no character is left half.
    pub fn is_complete(&self) -> bool {
        self.started_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn validate(pieces: &[&[u8]]) -> bool {
        let mut validator = Utf8Validator::default();
        pieces.iter().all(|piece| validator.push(piece).is_ok()) && validator.is_complete()
    }

    #[test]
    fn character_split_at_every_byte_is_accepted() {
        let text = "aé€𝄞z".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                assert!(validate(&[&text[..first], &text[first..second], &text[second..]]));
            }
        }
    }

    #[test]
    fn byte_that_nothing_can_make_right_fails_before_the_rest_arrives() {
        for start in [&[0xf4, 0x90][..], &[0xed, 0xa0], &[0xc0], &[0xe0, 0x80], &[0xf8], &[0x80]] {
            let mut validator = Utf8Validator::default();
            let (last, first) = start.split_last().unwrap();
            assert_eq!(validator.push(first), Ok(()), "{start:x?}");
            assert_eq!(validator.push(&[*last]), Err(NotUtf8), "{start:x?}");
        }
    }

    #[test]
    fn text_that_ends_inside_a_character_is_not_complete() {
        assert!(!validate(&[b"ok", &[0xe2, 0x82]]));
    }

    proptest! {
        #[test]
        fn pieces_are_judged_as_the_whole_is(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), 0x80u8..0xc0, 0xe0u8..0xf5, 0x20u8..0x7f], 0..64),
            splits in proptest::collection::vec(0usize..64, 0..4),
        ) {
            let mut at: Vec<usize> = splits.into_iter().map(|at| at.min(bytes.len())).collect();
            at.push(0);
            at.push(bytes.len());
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(validate(&pieces), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
