//! The path and query of a WebSocket URL.

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
    /// The first message tells the client its connection id (`?hello=true`).
    pub hello: bool,
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
        let endpoint = match path.strip_prefix("/channels/") {
            None if path == "/echo" => Endpoint::Echo,
            None => return Err(TargetError::NotFound),
            Some(encoded) => {
                let name = decode(encoded)?;
                let own = boolean(query, "own")?.unwrap_or(true);
                Endpoint::Channel { name: ChannelName::new(&name)?, own }
            }
        };
        Ok(Self { endpoint, hello })
    }
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
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    match pairs.find(|(key, _)| *key == name).map(|(_, value)| value) {
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
    use super::*;

    fn channel(name: &str, own: bool) -> Result<Target, TargetError> {
        let endpoint = Endpoint::Channel { name: ChannelName::new(name).unwrap(), own };
        Ok(Target { endpoint, hello: false })
    }

    #[test]
    fn echo_and_channels_are_found() {
        assert_eq!(
            Target::parse("/echo", Some("hello=true")),
            Ok(Target { endpoint: Endpoint::Echo, hello: true })
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
