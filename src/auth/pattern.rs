//! Which channels is a permission about?
//!
//! - [`ChannelPattern`]: one pattern, such as `user:42:*`.
//! - [`Permissions`]: those to subscribe and those to publish.
//!
//! A pattern is kept and matched as the text that it is. A compiled glob would take kilobytes for each
//! connection, and tens of microseconds of each handshake.

use std::fmt;
use std::str::{Chars, FromStr};

use thiserror::Error;

use crate::pubsub::ChannelName;

/// Names of channels: `*` stands for any characters, or none, `?` for one, and everything else for
/// itself. At most [`ChannelName::MAX_BYTES`] long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelPattern(Box<str>);

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// It has no character.
    #[error("a pattern of channels is empty. Write a name such as news, news:* or * for all")]
    Empty,
    /// The data is how many bytes it has.
    #[error("a pattern of channels has {0} bytes. Write at most 255")]
    TooLong(usize),
    /// The data is how many there are.
    #[error("there are {0} patterns of channels. Write at most {max}", max = Permissions::MAX_PATTERNS)]
    TooMany(usize),
}

impl ChannelPattern {
    /// Whether it stands for `channel`. Takes at most as many steps as the one has characters times
    /// the other.
    pub fn matches(&self, channel: &ChannelName) -> bool {
        let (mut pattern, mut name) = (self.0.chars(), channel.as_str().chars());
        // What is behind the last star, and where that is tried next.
        let mut retry: Option<(Chars<'_>, Chars<'_>)> = None;
        loop {
            let mut behind = pattern.clone();
            match (behind.next(), name.clone().next()) {
                (Some('*'), _) => {
                    retry = Some((behind.clone(), name.clone()));
                    pattern = behind;
                }
                (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                    pattern = behind;
                    name.next();
                }
                (None, None) => return true,
                (Some(_) | None, Some(_)) | (Some(_), None) => {
                    let Some((behind_star, from)) = &mut retry else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (pattern, name) = (behind_star.clone(), from.clone());
                }
            }
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        match text.len() {
            0 => Err(PatternError::Empty),
            1..=ChannelName::MAX_BYTES => Ok(Self(text.into())),
            too_long => Err(PatternError::TooLong(too_long)),
        }
    }
}

impl fmt::Display for ChannelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What may be subscribed and what may be published. What no pattern matches may not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    pub(super) subscribe: Box<[ChannelPattern]>,
    pub(super) publish: Box<[ChannelPattern]>,
}

impl Permissions {
    /// Most patterns of either kind: the bound is on the work of a handshake; the memory is bounded by
    /// the head of the request that carries them.
    pub const MAX_PATTERNS: usize = 128;

    /// These permissions.
    ///
    /// # Errors
    ///
    /// There are more than [`Permissions::MAX_PATTERNS`] of a kind.
    pub fn new(
        subscribe: Vec<ChannelPattern>,
        publish: Vec<ChannelPattern>,
    ) -> Result<Self, PatternError> {
        match subscribe.len().max(publish.len()) {
            0..=Self::MAX_PATTERNS => {
                Ok(Self { subscribe: subscribe.into(), publish: publish.into() })
            }
            too_many => Err(PatternError::TooMany(too_many)),
        }
    }

    /// The patterns to subscribe.
    pub fn subscribe(&self) -> &[ChannelPattern] {
        &self.subscribe
    }

    /// The patterns to publish.
    pub fn publish(&self) -> &[ChannelPattern] {
        &self.publish
    }
}

#[cfg(test)]
mod tests {
    use globset::GlobBuilder;
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        let pattern: ChannelPattern = pattern.parse().expect("short enough");
        pattern.matches(&ChannelName::new(name).expect("a name"))
    }

    #[test]
    fn star_is_any_characters_question_mark_is_one_and_all_else_is_itself() {
        for (pattern, name) in [
            ("news", "news"),
            ("news:*", "news:eu"),
            ("news:*", "news:"),
            ("*", "room/1:é"),
            ("user:?:*", "user:é:inbox"),
            ("*:*:end", "a:b:c:end"),
            ("a*b*c", "aXbYbZc"),
            ("[a]{b}\\", "[a]{b}\\"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("news", "news:eu"),
            ("news:*", "news"),
            ("News", "news"),
            ("user:?", "user:42"),
            ("a*b", "ab "),
            ("?", "é€"),
            ("[ab]", "a"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn pattern_has_1_to_255_bytes() {
        assert_eq!("".parse::<ChannelPattern>(), Err(PatternError::Empty));
        assert!("*".repeat(255).parse::<ChannelPattern>().is_ok());
        assert_eq!("*".repeat(256).parse::<ChannelPattern>(), Err(PatternError::TooLong(256)));
        let many = vec!["*".parse().expect("a pattern"); 129];
        assert_eq!(Permissions::new(many, Vec::new()), Err(PatternError::TooMany(129)));
    }

    #[test]
    fn pattern_of_many_stars_takes_no_time() {
        let pattern = "*a".repeat(127);
        assert!(!matches(&pattern, &"a".repeat(126)));
        assert!(matches(&pattern, &"a".repeat(255)));
    }

    proptest! {
        /// globset reads the same patterns for `/api/channels`, but takes one byte for each `?`, and
        /// gives two stars between slashes a meaning of their own.
        #[test]
        fn pattern_means_what_globset_makes_of_it(
            pattern in "[ab:*?]{1,12}",
            name in "[ab:]{1,12}",
        ) {
            let glob = GlobBuilder::new(&pattern).build().expect("a glob").compile_matcher();
            prop_assert_eq!(matches(&pattern, &name), glob.is_match(&name));
        }

        #[test]
        fn name_matches_itself_and_every_pattern_that_stars_a_part_of_it(
            head in "[a-zé:]{0,20}", middle in "[a-zé:]{0,20}", tail in "[a-zé:]{1,20}",
        ) {
            let name = format!("{head}{middle}{tail}");
            prop_assert!(matches(&name, &name));
            let starred = format!("{head}*{tail}");
            prop_assert!(matches(&starred, &name));
        }
    }
}
