//! The path and query of a WebSocket URL.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use thiserror::Error;

use crate::pubsub::{ChannelName, ChannelNameError};

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/echo`: every message comes back as it was sent.
    Echo,
    /// `/channels/{name}`: what anyone sends is delivered to everyone there.
    Channel {
        /// The channel.
        name: ChannelName,
        /// The sender gets its own messages too; `?own=false` says no.
        own: bool,
    },
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What the connection is for.
    pub endpoint: Endpoint,
    /// Channels that it hears beside the one that it publishes to (`?also=`, repeated). None of them
    /// twice, and none on `/echo`.
    pub also: Vec<ChannelName>,
    /// The first message tells the client its connection id (`?hello=true`).
    pub hello: bool,
    /// Some messages are for the gateway itself (`?control=true`).
    pub control: bool,
}

/// Why a request target leads nowhere. The text is for the person who made the request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// 404.
    #[error("nothing is here; WebSocket endpoints are /echo and /channels/{{name}}")]
    NotFound,
    /// 400.
    #[error("{0}")]
    ChannelName(#[from] ChannelNameError),
    /// 400.
    #[error("the channel name is not UTF-8 in percent-encoding (RFC 3986 section 2.1)")]
    ChannelNameEncoding,
    /// 400.
    #[error("the parameter {name} is true or false, not \"{value}\"")]
    NotABoolean {
        /// The parameter of the query.
        name: &'static str,
        /// What it was given, shortened.
        value: String,
    },
    /// 400.
    #[error(
        "the request names {channels} channels; a connection may have {max_channels} here \
         (max_channels_per_connection)"
    )]
    TooManyChannels {
        /// That of the path and the different ones in the query.
        channels: usize,
        /// The bound.
        max_channels: usize,
    },
}

impl Target {
    /// Reads the path and query of a request target. Parameters that nobody knows are ignored.
    ///
    /// # Errors
    ///
    /// There is no such endpoint, or a part of it cannot be read.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        let query = query.unwrap_or_default();
        let hello = boolean(query, "hello")?.unwrap_or(false);
        let control = boolean(query, "control")?.unwrap_or(false);
        let (endpoint, also) = match path.strip_prefix("/channels/") {
            None if path == "/echo" => (Endpoint::Echo, Vec::new()),
            None => return Err(TargetError::NotFound),
            Some(encoded) => {
                let name = channel(encoded)?;
                let own = boolean(query, "own")?.unwrap_or(true);
                let also = also(query, &name)?;
                (Endpoint::Channel { name, own }, also)
            }
        };
        Ok(Self { endpoint, also, hello, control })
    }

    /// How many channels the connection would be subscribed to.
    pub fn channels(&self) -> usize {
        match self.endpoint {
            Endpoint::Echo => 0,
            Endpoint::Channel { .. } => 1 + self.also.len(),
        }
    }

    /// Refuses more channels than a connection may have.
    ///
    /// # Errors
    ///
    /// There are more than `max_channels`.
    pub fn check_channels(&self, max_channels: usize) -> Result<(), TargetError> {
        match self.channels() {
            channels if channels > max_channels => {
                Err(TargetError::TooManyChannels { channels, max_channels })
            }
            _ => Ok(()),
        }
    }
}

fn channel(encoded: &str) -> Result<ChannelName, TargetError> {
    Ok(ChannelName::new(&decode(encoded)?)?)
}

/// The channels of the query, each once, and not the one called `name`.
fn also(query: &str, name: &ChannelName) -> Result<Vec<ChannelName>, TargetError> {
    let mut seen = HashSet::from([name.clone()]);
    let mut channels = Vec::new();
    for (_, encoded) in pairs(query).filter(|(key, _)| *key == "also") {
        let channel = channel(encoded)?;
        if seen.insert(channel.clone()) {
            channels.push(channel);
        }
    }
    Ok(channels)
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn decode(encoded: &str) -> Result<String, TargetError> {
    let bytes = encoded.as_bytes();
    let well_formed = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !well_formed {
        return Err(TargetError::ChannelNameEncoding);
    }
    match percent_decode_str(encoded).decode_utf8() {
        Ok(name) => Ok(name.into_owned()),
        Err(_) => Err(TargetError::ChannelNameEncoding),
    }
}

fn boolean(query: &str, name: &'static str) -> Result<Option<bool>, TargetError> {
    match pairs(query).find(|(key, _)| *key == name).map(|(_, value)| value) {
        None => Ok(None),
        Some("true" | "1") => Ok(Some(true)),
        Some("false" | "0") => Ok(Some(false)),
        Some(value) => {
            Err(TargetError::NotABoolean { name, value: value.chars().take(32).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> ChannelName {
        ChannelName::new(name).unwrap()
    }

    fn channel(channel: &str, own: bool) -> Result<Target, TargetError> {
        let endpoint = Endpoint::Channel { name: name(channel), own };
        Ok(Target { endpoint, also: Vec::new(), hello: false, control: false })
    }

    /// What `/channels/news` with this query is subscribed to.
    fn heard(query: &str) -> Result<Vec<String>, TargetError> {
        let target = Target::parse("/channels/news", Some(query))?;
        let Endpoint::Channel { name, .. } = &target.endpoint else {
            unreachable!("the path is that of a channel");
        };
        assert_eq!(target.channels(), 1 + target.also.len());
        Ok(std::iter::once(name).chain(&target.also).map(ToString::to_string).collect())
    }

    #[test]
    fn echo_and_channels_are_found() {
        assert_eq!(
            Target::parse("/echo", Some("hello=true&control=1")),
            Ok(Target { endpoint: Endpoint::Echo, also: Vec::new(), hello: true, control: true })
        );
        assert_eq!(Target::parse("/channels/news", None), channel("news", true));
        assert_eq!(Target::parse("/channels/news", Some("own=false&x=y")), channel("news", false));
    }

    #[test]
    fn channel_names_are_percent_decoded_once() {
        assert_eq!(Target::parse("/channels/room%2F1%3A%C3%A9", None), channel("room/1:é", true));
        assert_eq!(Target::parse("/channels/a/b", None), channel("a/b", true));
        assert_eq!(Target::parse("/channels/100%2525", None), channel("100%25", true));
    }

    #[test]
    fn further_channels_are_percent_decoded_and_each_counts_once() {
        assert_eq!(
            heard("also=a&own=false&also=room%2F1&also=%C3%A9"),
            Ok(["news", "a", "room/1", "é"].map(str::to_owned).to_vec())
        );
        assert_eq!(
            heard("also=a&also=news&also=%61&also=a+b"),
            Ok(["news", "a", "a+b"].map(str::to_owned).to_vec())
        );
        let echo = Target::parse("/echo", Some("also=a")).unwrap();
        assert_eq!((echo.channels(), echo.also), (0, Vec::new()));
    }

    #[test]
    fn further_channels_are_refused_as_the_one_of_the_path_is() {
        let refused = |query| heard(query).unwrap_err();
        assert_eq!(refused("also=a&also=%zz"), TargetError::ChannelNameEncoding);
        assert_eq!(refused("also=%ff"), TargetError::ChannelNameEncoding);
        for query in ["also=", "also", "also=a&also"] {
            assert_eq!(refused(query), TargetError::ChannelName(ChannelNameError::Empty));
        }
        let long = format!("also={}", "x".repeat(256));
        assert_eq!(refused(&long), TargetError::ChannelName(ChannelNameError::TooLong(256)));
    }

    #[test]
    fn more_channels_than_allowed_are_refused_with_both_numbers() {
        let target = Target::parse("/channels/news", Some("also=a&also=b&also=a")).unwrap();
        assert_eq!(target.check_channels(3), Ok(()));
        assert_eq!(
            target.check_channels(2).unwrap_err().to_string(),
            "the request names 3 channels; a connection may have 2 here \
             (max_channels_per_connection)"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_is_heard_once_in_the_order_asked(
            names in proptest::collection::vec("[ab%/é]{1,2}", 0..20),
        ) {
            let encode = |name: &String| {
                name.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>()
            };
            let query: Vec<String> =
                names.iter().map(|name| format!("also={}", encode(name))).collect();
            let mut expected = vec!["news".to_owned()];
            for name in names {
                if !expected.contains(&name) {
                    expected.push(name);
                }
            }
            prop_assert_eq!(heard(&query.join("&")), Ok(expected));
        }
    }

    #[test]
    fn other_paths_are_not_found() {
        for path in ["/", "", "/ech", "/echo/", "/channels", "/Echo"] {
            assert_eq!(Target::parse(path, None), Err(TargetError::NotFound), "{path}");
        }
    }

    #[test]
    fn unreadable_names_and_parameters_are_refused_with_the_reason() {
        for path in ["/channels/%", "/channels/%4", "/channels/%zz", "/channels/%ff"] {
            assert_eq!(Target::parse(path, None), Err(TargetError::ChannelNameEncoding), "{path}");
        }
        assert_eq!(
            Target::parse("/channels/", None),
            Err(TargetError::ChannelName(ChannelNameError::Empty))
        );
        assert_eq!(
            Target::parse("/channels/a%0Ab", None),
            Err(TargetError::ChannelName(ChannelNameError::ControlCharacter))
        );
        let refused = Target::parse("/channels/a", Some("own=no")).unwrap_err();
        assert_eq!(refused.to_string(), "the parameter own is true or false, not \"no\"");
    }
}
