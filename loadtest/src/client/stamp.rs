//! What a measured message says about itself, in its first bytes: when it was to be sent, by which
//! publisher, and which of that publisher's messages it is. In hexadecimal, so that it is text too.

/// The first bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Nanoseconds since the run began.
    pub(crate) due: u64,
    pub(crate) publisher: u16,
    pub(crate) number: u32,
}

impl Stamp {
    /// Of the text.
    pub(crate) const BYTES: usize = 28;

    /// Writes it to the front of `payload`, which has at least [`Self::BYTES`] bytes.
    pub(crate) fn write(self, payload: &mut [u8]) {
        let number =
            u128::from(self.due) << 48 | u128::from(self.publisher) << 32 | u128::from(self.number);
        for (place, byte) in payload[..Self::BYTES].iter_mut().rev().enumerate() {
            *byte = b"0123456789abcdef"[(number >> (4 * place)) as usize & 0xf];
        }
    }

    /// Reads it again; `None` where there is something else.
    #[inline]
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let mut number = 0u128;
        for byte in text.get(..Self::BYTES)? {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => return None,
            };
            number = number << 4 | u128::from(digit);
        }
        Some(Self {
            due: (number >> 48) as u64,
            publisher: (number >> 32) as u16,
            number: number as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_comes_back_as_it_was_written() {
        for stamp in [
            Stamp { due: 0, publisher: 0, number: 0 },
            Stamp { due: u64::MAX, publisher: u16::MAX, number: u32::MAX },
            Stamp { due: 123_456_789_012, publisher: 7, number: 1 << 31 },
        ] {
            let mut payload = [b'.'; 40];
            stamp.write(&mut payload);
            assert_eq!(Stamp::read(&payload), Some(stamp));
            assert!(payload[Stamp::BYTES..].iter().all(|byte| *byte == b'.'));
        }
        assert_eq!(Stamp::read(b"too short"), None);
        assert_eq!(Stamp::read(&[b'x'; 28]), None);
    }
}
