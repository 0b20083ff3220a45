//! What a channel may be called.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The name of a channel: 1 to 255 bytes of UTF-8 without control characters. Cheap to clone, also
/// for another thread.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Why a text is no name of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChannelNameError {
    /// It has no byte.
    #[error("a channel name has at least one byte")]
    Empty,
    /// It has more than [`ChannelName::MAX_BYTES`]; the data is how many.
    #[error("a channel name has at most 255 bytes; this one has {0}")]
    TooLong(usize),
    /// It holds one.
    #[error("a channel name holds no control characters")]
    ControlCharacter,
}

impl ChannelName {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Takes `name` if it may name a channel.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, ChannelNameError> {
        match name.len() {
            0 => Err(ChannelNameError::Empty),
            1..=Self::MAX_BYTES if name.chars().any(char::is_control) => {
                Err(ChannelNameError::ControlCharacter)
            }
            1..=Self::MAX_BYTES => Ok(Self(name.into())),
            too_long => Err(ChannelNameError::TooLong(too_long)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_has_1_to_255_bytes() {
        assert_eq!(ChannelName::new(""), Err(ChannelNameError::Empty));
        assert!(ChannelName::new("a").is_ok());
        assert!(ChannelName::new(&"a".repeat(255)).is_ok());
        assert_eq!(ChannelName::new(&"a".repeat(256)), Err(ChannelNameError::TooLong(256)));
        assert_eq!(ChannelName::new(&"é".repeat(128)), Err(ChannelNameError::TooLong(256)));
    }

    #[test]
    fn control_characters_are_refused_and_other_text_is_not() {
        for name in ["\0", "a\nb", "\u{7f}", "\u{85}"] {
            assert_eq!(ChannelName::new(name), Err(ChannelNameError::ControlCharacter), "{name:?}");
        }
        for name in ["news", "room/1:é 𝄞", " "] {
            assert_eq!(ChannelName::new(name).unwrap().as_str(), name);
        }
    }
}
