//! What does a call ask for? A method and a body go in, what to do comes out: no gateway is asked, so
//! whoever has bytes can find out what they mean.

use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use globset::{GlobBuilder, GlobMatcher};
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::auth::identity::{UnixSeconds, User};
use crate::auth::token::MAX_TOKEN_BYTES;
use crate::pubsub::{ChannelName, ConnectionId, ConnectionIdError, GatewayId};
use crate::shard::orders::{Renewal, Whose};
use crate::wire::close::{CloseCode, MAX_REASON_BYTES};
use crate::wire::frame;
use crate::wire::header::Opcode;

/// Channels of one broadcast.
pub const MAX_BROADCAST_CHANNELS: usize = 10_000;

/// Connections that a disconnect of a user may leave alone.
const MAX_WHITELIST: usize = 1_000;

/// Longest pattern in bytes: four times the longest name.
const MAX_PATTERN_BYTES: usize = 4 * ChannelName::MAX_BYTES;

/// Alternatives in a pattern. Each can be one level of recursion, and 130 are too many.
const MAX_PATTERN_BRACES: usize = 32;

/// Longest grace or duration of a call.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

const DURATION: &str = "a text with a unit such as \"30s\"";

/// What a call asks for.
#[derive(Debug)]
pub enum Call {
    /// Deliver a message to a channel.
    Publish {
        /// The channel.
        channel: ChannelName,
        /// The message as a whole server frame.
        frame: Bytes,
    },
    /// Deliver a message to several channels.
    Broadcast {
        /// At least one and at most [`MAX_BROADCAST_CHANNELS`], in the order given; where an entry is no
        /// name, why. The others get the message all the same.
        channels: Vec<Result<ChannelName, ApiError>>,
        /// The message as a whole server frame.
        frame: Bytes,
    },
    /// Deliver a message to one connection.
    Send {
        /// The connection.
        connection: ConnectionId,
        /// The message as a whole server frame.
        frame: Bytes,
    },
    /// Close one connection, or all of a user.
    Disconnect {
        /// Which.
        whose: Whose,
        /// But none of these, where all of a user are meant.
        except: Vec<ConnectionId>,
        /// With which code.
        code: CloseCode,
        /// At most [`MAX_REASON_BYTES`] long.
        reason: String,
    },
    /// Renew the token of one connection, or of all of a user.
    Refresh {
        /// Which.
        whose: Whose,
        /// By what.
        renewal: Renewal,
    },
    /// Tell what is known of one connection.
    Connection {
        /// The connection.
        connection: ConnectionId,
    },
    /// Tell which channels there are.
    Channels {
        /// Only those whose name it matches.
        pattern: Option<GlobMatcher>,
    },
    /// Tell how the gateway does.
    Info,
    /// Drain the gateway, as SIGTERM does. What is not said is as the settings have it.
    Drain {
        /// How long to accept on.
        grace: Option<Duration>,
        /// Over how long the closes are spread.
        duration: Option<Duration>,
    },
    /// Close a share of the connections, and serve on.
    Shed {
        /// More than 0, at most 100.
        percent: f64,
        /// Over how long the closes are spread.
        duration: Duration,
    },
}

/// What the meaning of a body depends on beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whose connections can be named.
    pub gateway: GatewayId,
    /// The bound on a message.
    pub max_message_bytes: usize,
}

type Parameters = Map<String, Value>;

impl Call {
    /// Reads the call of `method` with `body`, which is a JSON object, or blank where a method needs no
    /// parameters. Fields that nobody knows are ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in a text that is short however long the body is.
    pub fn parse(method: &str, body: &[u8], rules: &Rules) -> Result<Self, ApiError> {
        let parameters = &parameters(body)?;
        match method {
            "publish" => Ok(Self::Publish {
                channel: ChannelName::new(required_string(parameters, "channel")?)?,
                frame: message(parameters, rules)?,
            }),
            "broadcast" => Ok(Self::Broadcast {
                channels: channels(parameters)?,
                frame: message(parameters, rules)?,
            }),
            "send" => Ok(Self::Send {
                connection: connection(parameters, rules)?,
                frame: message(parameters, rules)?,
            }),
            "disconnect" => disconnect(parameters, rules),
            "refresh" => refresh(parameters, rules),
            "connection" => Ok(Self::Connection { connection: connection(parameters, rules)? }),
            "channels" => match string(parameters, "pattern")? {
                None | Some("") => Ok(Self::Channels { pattern: None }),
                Some(pattern) => Ok(Self::Channels { pattern: Some(glob(pattern)?) }),
            },
            "info" => Ok(Self::Info),
            "drain" => Ok(Self::Drain {
                grace: duration(parameters, "grace")?,
                duration: duration(parameters, "duration")?,
            }),
            "shed" => Ok(Self::Shed {
                percent: percent(parameters)?,
                duration: duration(parameters, "duration")?
                    .ok_or_else(|| missing("duration", DURATION))?,
            }),
            unknown => Err(ApiError::MethodNotFound(unknown.chars().take(64).collect())),
        }
    }
}

fn parameters(body: &[u8]) -> Result<Parameters, ApiError> {
    let value = match body.trim_ascii() {
        // A method without parameters needs no body.
        b"" => return Ok(Map::new()),
        body => {
            serde_json::from_slice(body).map_err(|error| ApiError::NotJson(error.to_string()))?
        }
    };
    match value {
        Value::Object(parameters) => Ok(parameters),
        _ => Err(ApiError::NotJson("it is another JSON value".to_owned())),
    }
}

/// The channels of a broadcast.
fn channels(parameters: &Parameters) -> Result<Vec<Result<ChannelName, ApiError>>, ApiError> {
    let names = match parameters.get("channels") {
        None | Some(Value::Null) => return Err(missing("channels", "a list of channel names")),
        Some(Value::Array(names)) if names.is_empty() => {
            return Err(ApiError::BadRequest("channels is empty".to_owned()));
        }
        Some(Value::Array(names)) if names.len() > MAX_BROADCAST_CHANNELS => {
            let (count, most) = (names.len(), MAX_BROADCAST_CHANNELS);
            let text = format!("channels has {count} entries; one broadcast takes at most {most}");
            return Err(ApiError::BadRequest(text));
        }
        Some(Value::Array(names)) => names,
        Some(other) => return Err(wrong_type("channels", "a list of channel names", other)),
    };
    let names = names.iter().map(|name| match name {
        Value::String(name) => Ok(ChannelName::new(name)?),
        other => Err(wrong_type("an entry of channels", "a string", other)),
    });
    Ok(names.collect())
}

/// `{"connection": id}` or `{"user": name}`, with both only that connection of that user, and with
/// `whitelist` all of a user but these; as in Centrifugo. `{"code": 3000..=4999 or one of RFC 6455, "reason": …}`; code and reason may
/// also stand in an object `disconnect`, as in Centrifugo.
fn disconnect(parameters: &Parameters, rules: &Rules) -> Result<Call, ApiError> {
    let (whose, except) = (whose(parameters, rules)?, whitelist(parameters, rules)?);
    let place = match parameters.get("disconnect") {
        None | Some(Value::Null) => parameters,
        Some(Value::Object(inner)) => inner,
        Some(other) => return Err(wrong_type("disconnect", "an object", other)),
    };
    let code = match place.get("code") {
        None | Some(Value::Null) => CloseCode::NORMAL,
        Some(Value::Number(code)) => {
            let known = code.as_u64().and_then(|code| u16::try_from(code).ok());
            known.and_then(CloseCode::from_wire).ok_or_else(|| {
                let code: String = code.to_string().chars().take(32).collect();
                let text = format!(
                    "code is {code}, which no Close frame may carry; applications use 3000 to 4999, \
                     and 1000 to 1003 or 1007 to 1014 as RFC 6455 means them"
                );
                ApiError::BadRequest(text)
            })?
        }
        Some(other) => return Err(wrong_type("code", "a number", other)),
    };
    let reason = string(place, "reason")?.unwrap_or_default().to_owned();
    if reason.len() > MAX_REASON_BYTES {
        let bytes = reason.len();
        let text = format!("reason has {bytes} bytes; a Close frame holds {MAX_REASON_BYTES}");
        return Err(ApiError::BadRequest(text));
    }
    Ok(Call::Disconnect { whose, except, code, reason })
}

/// The connections that are not meant. Those of other processes are not here anyway.
fn whitelist(parameters: &Parameters, rules: &Rules) -> Result<Vec<ConnectionId>, ApiError> {
    let ids = match parameters.get("whitelist") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() > MAX_WHITELIST => {
            let (count, most) = (ids.len(), MAX_WHITELIST);
            let text = format!("whitelist has {count} entries; it may have {most}");
            return Err(ApiError::BadRequest(text));
        }
        Some(Value::Array(ids)) => ids,
        Some(other) => return Err(wrong_type("whitelist", "a list of connection ids", other)),
    };
    let mut connections = Vec::new();
    for id in ids {
        let Value::String(id) = id else {
            return Err(wrong_type("an entry of whitelist", "a string", id));
        };
        match ConnectionId::parse_uuid(id, rules.gateway) {
            Ok(id) => connections.push(id),
            Err(ConnectionIdError::NotAnId) => {
                return Err(ApiError::ConnectionId(ConnectionIdError::NotAnId));
            }
            Err(_) => {}
        }
    }
    Ok(connections)
}

/// `{"connection": id}` or `{"user": name}` with one of `{"token": …}`, `{"expire_at": seconds}` and
/// `{"expired": true}`; the latter two as in Centrifugo.
fn refresh(parameters: &Parameters, rules: &Rules) -> Result<Call, ApiError> {
    let whose = whose(parameters, rules)?;
    let mut renewals = Vec::new();
    match string(parameters, "token")? {
        None | Some("") => {}
        Some(token) if token.len() > MAX_TOKEN_BYTES => {
            let bytes = token.len();
            let text = format!("token has {bytes} bytes; it may have {MAX_TOKEN_BYTES}");
            return Err(ApiError::BadRequest(text));
        }
        Some(token) => renewals.push(Renewal::Token(token.into())),
    }
    match parameters.get("expire_at") {
        None | Some(Value::Null) => {}
        Some(Value::Number(seconds)) => match seconds.as_u64() {
            // What Centrifugo's clients send for "not given".
            Some(0) => {}
            Some(seconds) => renewals.push(Renewal::ExpireAt(UnixSeconds(seconds))),
            None => {
                let text = "expire_at is not a whole number of seconds since 1970".to_owned();
                return Err(ApiError::BadRequest(text));
            }
        },
        Some(other) => return Err(wrong_type("expire_at", "seconds since 1970", other)),
    }
    match parameters.get("expired") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::Bool(true)) => renewals.push(Renewal::Expired),
        Some(other) => return Err(wrong_type("expired", "true or false", other)),
    }
    match <[Renewal; 1]>::try_from(renewals) {
        Ok([renewal]) => Ok(Call::Refresh { whose, renewal }),
        Err(_) => {
            let text = "give one of token, expire_at and expired".to_owned();
            Err(ApiError::BadRequest(text))
        }
    }
}

/// Reads a pattern, which is bounded in length and depth: globset and the regular expression that it
/// makes recurse with the one and grow with the other, and panic beyond what they can hold.
fn glob(pattern: &str) -> Result<GlobMatcher, ApiError> {
    let (bytes, braces) = (pattern.len(), pattern.matches('{').count());
    if bytes > MAX_PATTERN_BYTES || braces > MAX_PATTERN_BRACES {
        return Err(ApiError::BadRequest(format!(
            "pattern has {bytes} bytes and {braces} opening braces; it may have {MAX_PATTERN_BYTES} and \
             {MAX_PATTERN_BRACES}"
        )));
    }
    match GlobBuilder::new(pattern).build() {
        Ok(glob) => Ok(glob.compile_matcher()),
        Err(error) => {
            let text = format!("pattern is not a glob such as news:*: {}", error.kind());
            Err(ApiError::BadRequest(text))
        }
    }
}

/// Which connections: one by its id, or all of a user; where both are given that one, if it is that
/// user's. An empty user is none, as Centrifugo's clients send it.
fn whose(parameters: &Parameters, rules: &Rules) -> Result<Whose, ApiError> {
    let user = match string(parameters, "user")? {
        None | Some("") => None,
        Some(user) => Some(User::new(user)?),
    };
    let names = |name| matches!(string(parameters, name), Ok(None | Some("")));
    match user {
        Some(user) if names("connection") && names("client") => Ok(Whose::User(user)),
        user => Ok(Whose::Connection { connection: connection(parameters, rules)?, user }),
    }
}

/// Which connection: `connection`, or `client` as in Centrifugo.
fn connection(parameters: &Parameters, rules: &Rules) -> Result<ConnectionId, ApiError> {
    let id = match string(parameters, "connection")? {
        Some(id) => id,
        None => string(parameters, "client")?
            .ok_or_else(|| missing("connection", "the X-Connection-Id of a connection"))?,
    };
    Ok(ConnectionId::parse_uuid(id, rules.gateway)?)
}

/// The message as a server frame: a JSON string as that text, any other JSON value as its compact
/// text, `b64data` as binary.
fn message(parameters: &Parameters, rules: &Rules) -> Result<Bytes, ApiError> {
    match (parameters.get("data"), string(parameters, "b64data")?) {
        (Some(_), Some(_)) => {
            Err(ApiError::BadRequest("give data or b64data, not both".to_owned()))
        }
        (None, None) => Err(missing("data", "a JSON value, or b64data, a string in base64")),
        (Some(Value::String(text)), None) => encode(rules, Opcode::Text, text.as_bytes()),
        (Some(value), None) => encode(rules, Opcode::Text, value.to_string().as_bytes()),
        (None, Some(base64)) => {
            let data = base64::engine::general_purpose::STANDARD.decode(base64);
            let data = data.map_err(|error| {
                ApiError::BadRequest(format!(
                    "b64data is not base64 in the standard alphabet with padding: {error}"
                ))
            })?;
            encode(rules, Opcode::Binary, &data)
        }
    }
}

fn encode(rules: &Rules, opcode: Opcode, payload: &[u8]) -> Result<Bytes, ApiError> {
    let (bytes, max_bytes) = (payload.len(), rules.max_message_bytes);
    if bytes > max_bytes {
        return Err(ApiError::MessageTooBig { bytes, max_bytes });
    }
    Ok(frame::encode(opcode, payload))
}

/// A duration as the settings have it, up to [`MAX_DURATION`].
fn duration(parameters: &Parameters, name: &str) -> Result<Option<Duration>, ApiError> {
    let Some(text) = string(parameters, name)? else {
        return Ok(None);
    };
    let wrong = |problem: &str| {
        Err(ApiError::BadRequest(format!("{name} is {problem}; it is {DURATION}, up to 24h")))
    };
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MAX_DURATION => Ok(Some(duration)),
        Ok(_) => wrong("too long"),
        Err(_) => wrong("no duration"),
    }
}

/// The share of connections to shed.
fn percent(parameters: &Parameters) -> Result<f64, ApiError> {
    let expected = "a number of more than 0 and at most 100";
    match parameters.get("percent") {
        None | Some(Value::Null) => Err(missing("percent", expected)),
        Some(Value::Number(number)) => {
            let percent = number.as_f64().filter(|percent| *percent > 0.0 && *percent <= 100.0);
            percent.ok_or_else(|| ApiError::BadRequest(format!("percent must be {expected}")))
        }
        Some(other) => Err(wrong_type("percent", expected, other)),
    }
}

fn required_string<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, ApiError> {
    string(parameters, name)?.ok_or_else(|| missing(name, "a string"))
}

fn string<'a>(parameters: &'a Parameters, name: &str) -> Result<Option<&'a str>, ApiError> {
    match parameters.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(name, "a string", other)),
    }
}

fn missing(name: &str, expected: &str) -> ApiError {
    ApiError::BadRequest(format!("{name} is missing; it is {expected}"))
}

fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ApiError::BadRequest(format!("{name} is {found}; it must be {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, body: &str) -> Result<Call, ApiError> {
        let rules = Rules { gateway: GatewayId::new(7), max_message_bytes: 10 };
        Call::parse(method, body.as_bytes(), &rules)
    }

    fn refusal(method: &str, body: &str) -> String {
        parse(method, body).expect_err("refused").to_string()
    }

    #[test]
    fn body_may_be_blank_where_a_method_needs_no_parameters_and_is_an_object_elsewhere() {
        assert!(matches!(parse("info", " \n"), Ok(Call::Info)));
        assert!(matches!(parse("channels", ""), Ok(Call::Channels { pattern: None })));
        assert!(matches!(parse("info", "[]"), Err(ApiError::NotJson(_))));
        assert!(matches!(parse("nothing", "{}"), Err(ApiError::MethodNotFound(_))));
    }

    #[test]
    fn message_of_exactly_the_limit_passes() {
        let body = |text: &str| format!("{{\"channel\":\"a\",\"data\":\"{text}\"}}");
        let Ok(Call::Publish { channel, frame }) = parse("publish", &body("0123456789")) else {
            panic!("ten bytes are allowed");
        };
        assert_eq!((channel.as_str(), &frame[..]), ("a", &b"\x81\x0a0123456789"[..]));
        let refused = parse("publish", &body("0123456789a"));
        assert!(matches!(refused, Err(ApiError::MessageTooBig { bytes: 11, max_bytes: 10 })));
    }

    #[test]
    fn entry_that_is_no_name_leaves_the_others_of_a_broadcast_alone() {
        let body = r#"{"channels":["a","",7],"data":1}"#;
        let Ok(Call::Broadcast { channels, .. }) = parse("broadcast", body) else {
            panic!("one of three is a name");
        };
        assert!(matches!(&channels[..], [Ok(_), Err(_), Err(_)]));
    }

    #[test]
    fn pattern_that_no_regular_expression_can_hold_is_refused_instead_of_a_panic() {
        let nested = |depth| {
            let pattern = "{a,".repeat(depth) + "a" + &"}".repeat(depth);
            format!("{{\"pattern\":\"{pattern}\"}}")
        };
        assert!(parse("channels", &nested(MAX_PATTERN_BRACES)).is_ok());
        for depth in [MAX_PATTERN_BRACES + 1, 130, 100_000] {
            assert!(refusal("channels", &nested(depth)).starts_with("pattern has"));
        }
        let long = format!("{{\"pattern\":\"{}\"}}", "?".repeat(600_000));
        assert!(refusal("channels", &long).starts_with("pattern has 600000 bytes"));
    }

    #[test]
    fn drain_and_shed_take_durations_with_units_and_shares_that_are_some() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert!(matches!(parse("drain", ""), Ok(Call::Drain { grace: None, duration: None })));
        let Ok(Call::Drain { grace, duration }) =
            parse("drain", r#"{"grace":"0s","duration":"1m 30s"}"#)
        else {
            panic!("both may be given");
        };
        assert_eq!((grace, duration), (seconds(0), seconds(90)));
        let Ok(Call::Shed { percent, duration }) =
            parse("shed", r#"{"percent":2.5,"duration":"30s"}"#)
        else {
            panic!("a fortieth");
        };
        assert_eq!((percent, Some(duration)), (2.5, seconds(30)));
        assert!(parse("shed", r#"{"percent":100,"duration":"0s"}"#).is_ok());
        for (method, body, problem) in [
            ("drain", r#"{"grace":"soon"}"#, "grace is no duration"),
            ("drain", r#"{"duration":20}"#, "duration is a number"),
            ("drain", r#"{"duration":"25h"}"#, "duration is too long"),
            ("shed", r#"{"percent":10}"#, "duration is missing"),
            ("shed", r#"{"duration":"1s"}"#, "percent is missing"),
            ("shed", r#"{"percent":0,"duration":"1s"}"#, "percent must be"),
            ("shed", r#"{"percent":-1,"duration":"1s"}"#, "percent must be"),
            ("shed", r#"{"percent":100.1,"duration":"1s"}"#, "percent must be"),
            ("shed", r#"{"percent":1e999,"duration":"1s"}"#, "percent must be"),
            ("shed", r#"{"percent":"10%","duration":"1s"}"#, "percent is a string"),
        ] {
            assert!(refusal(method, body).starts_with(problem), "{}", refusal(method, body));
        }
    }

    #[test]
    fn code_of_many_digits_is_not_repeated_in_full() {
        let id = "00000000-0007-8001-8000-000200000003";
        let body = format!("{{\"connection\":\"{id}\",\"code\":1{}}}", "0".repeat(10_000));
        assert!(refusal("disconnect", &body).len() < 300);
    }
}
