//! Calls of the API.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humantime::{format_duration as show_duration, parse_duration};
use serde_json::{Value, json};
use wsgate::api::error::ApiError;
use wsgate::api::request::{Call, MAX_BROADCAST_CHANNELS, Rules};
use wsgate::auth::identity::UnixSeconds;
use wsgate::pubsub::{ChannelName, ChannelNameError, GatewayId};
use wsgate::shard::orders::{Renewal, Whose};
use wsgate::wire::close::{CloseCode, MAX_REASON_BYTES};
use wsgate::wire::frame;
use wsgate::wire::header::Opcode;

const MAX_MESSAGE_BYTES: usize = 1_000;

/// Whoever reads an error reads it on a screen.
const MAX_ERROR_BYTES: usize = 512;

/// Checks [`Call::parse`] with one input: the name of a method, the end of a line, and a body.
///
/// It is refused with a short text, or asks for what its JSON says, and for the same when that is said
/// again in the shortest way.
pub fn api_body(data: &[u8]) {
    let (method, body) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[][..]),
    };
    let method = String::from_utf8_lossy(method);
    let rules = Rules { gateway: GatewayId::new(7), max_message_bytes: MAX_MESSAGE_BYTES };
    match Call::parse(&method, body, &rules) {
        Err(error) => assert_short(&error),
        Ok(call) => {
            let parameters = if body.trim_ascii().is_empty() {
                json!({})
            } else {
                serde_json::from_slice(body.trim_ascii()).expect("it was read before")
            };
            assert_asks(&call, &parameters);
            let (method, body) = say(&call, &rules);
            let again = Call::parse(method, body.to_string().as_bytes(), &rules);
            let again = again.unwrap_or_else(|error| panic!("{method} {body}: {error}"));
            assert_eq!(format!("{again:?}"), format!("{call:?}"), "{method} {body}");
        }
    }
}

fn assert_short(error: &ApiError) {
    let text = error.to_string();
    assert!(text.len() <= MAX_ERROR_BYTES, "{} bytes: {text}", text.len());
    assert_eq!(error.to_json()["error"]["code"], error.code());
    assert!(error.status().is_client_error(), "{text}");
}

/// The fields of `call` are those of the JSON.
fn assert_asks(call: &Call, parameters: &Value) {
    match call {
        Call::Publish { channel, frame } => {
            assert_eq!(parameters["channel"], channel.as_str());
            assert_holds(frame, parameters);
        }
        Call::Broadcast { channels, frame } => {
            let said = parameters["channels"].as_array().expect("a list");
            assert_eq!(channels.len(), said.len());
            assert!((1..=MAX_BROADCAST_CHANNELS).contains(&said.len()));
            for (channel, said) in channels.iter().zip(said) {
                match channel {
                    Ok(name) => assert_eq!(said, name.as_str()),
                    Err(error) => {
                        assert_short(error);
                        assert!(said.as_str().is_none_or(|name| ChannelName::new(name).is_err()));
                    }
                }
            }
            assert_holds(frame, parameters);
        }
        Call::Send { connection: _, frame } => assert_holds(frame, parameters),
        Call::Disconnect { whose, except, code, reason } => {
            assert_means(whose, parameters);
            let listed = parameters["whitelist"].as_array().map_or(0, Vec::len);
            assert!(except.len() <= listed, "those of other gateways are left out");
            let place = parameters.get("disconnect").filter(|inner| !inner.is_null());
            let place = place.unwrap_or(parameters);
            let said = place["code"].as_u64().unwrap_or(CloseCode::NORMAL.as_u16().into());
            assert_eq!(u64::from(code.as_u16()), said);
            assert_eq!(place["reason"].as_str().unwrap_or_default(), reason);
            assert!(reason.len() <= MAX_REASON_BYTES);
        }
        Call::Refresh { whose, renewal } => {
            assert_means(whose, parameters);
            match renewal {
                Renewal::Token(token) => assert_eq!(parameters["token"], **token),
                Renewal::ExpireAt(UnixSeconds(seconds)) => {
                    assert_eq!(parameters["expire_at"].as_u64(), Some(*seconds));
                }
                Renewal::Expired => assert_eq!(parameters["expired"], true),
            }
        }
        Call::Channels { pattern } => {
            let said = parameters["pattern"].as_str().filter(|pattern| !pattern.is_empty());
            assert_eq!(pattern.as_ref().map(|pattern| pattern.glob().glob()), said);
        }
        Call::Connection { connection: _ } | Call::Info => {}
        Call::Drain { grace, duration } => {
            for (name, asked) in [("grace", grace), ("duration", duration)] {
                let said = parameters[name].as_str().map(|said| parse_duration(said).expect(said));
                assert_eq!(*asked, said);
            }
        }
        Call::Shed { percent, duration } => {
            assert!(*percent > 0.0 && *percent <= 100.0);
            assert_eq!(parameters["percent"].as_f64(), Some(*percent));
            let said = parameters["duration"].as_str().expect("it is needed");
            assert_eq!(*duration, parse_duration(said).expect(said));
        }
    }
}

/// The user is the one that the JSON names; a connection is read by a test of its own.
fn assert_means(whose: &Whose, parameters: &Value) {
    let user = match whose {
        Whose::User(user) => Some(user),
        Whose::Connection { user, .. } => user.as_ref(),
    };
    let said = parameters["user"].as_str().filter(|user| !user.is_empty());
    assert_eq!(user.map(|user| user.as_str()), said);
}

/// `frame` is one whole server frame with the message that the JSON says.
fn assert_holds(frame: &[u8], parameters: &Value) {
    let (opcode, payload) = match (&parameters["data"], &parameters["b64data"]) {
        (Value::Null, Value::String(base64)) => {
            let payload = STANDARD.decode(base64).expect("it was read before");
            assert_eq!(&STANDARD.encode(&payload), base64, "two texts for the same bytes");
            (Opcode::Binary, payload)
        }
        (Value::String(text), _) => (Opcode::Text, text.clone().into_bytes()),
        (value, _) => (Opcode::Text, value.to_string().into_bytes()),
    };
    assert!(payload.len() <= MAX_MESSAGE_BYTES);
    assert_eq!(frame, frame::encode(opcode, &payload), "one whole server frame");
}

/// The shortest way to ask for the same.
fn say(call: &Call, rules: &Rules) -> (&'static str, Value) {
    match call {
        Call::Publish { channel, frame } => {
            ("publish", with(json!({ "channel": channel.as_str() }), frame))
        }
        Call::Broadcast { channels, frame } => {
            // What is no name stays none.
            let names = channels.iter().map(|name| match name {
                Ok(name) => json!(name.as_str()),
                Err(ApiError::ChannelName(error)) => match error {
                    ChannelNameError::Empty => json!(""),
                    ChannelNameError::TooLong(bytes) => json!("x".repeat(*bytes)),
                    ChannelNameError::ControlCharacter => json!("\n"),
                },
                Err(error) => wrong_type(error),
            });
            let names: Vec<Value> = names.collect();
            ("broadcast", with(json!({ "channels": names }), frame))
        }
        Call::Send { connection, frame } => {
            let connection = connection.to_uuid(rules.gateway);
            ("send", with(json!({ "connection": connection }), frame))
        }
        Call::Disconnect { whose, except, code, reason } => {
            let except: Vec<_> = except.iter().map(|id| id.to_uuid(rules.gateway)).collect();
            let mut body = meant(whose, rules);
            body["disconnect"] = json!({ "code": code.as_u16(), "reason": reason });
            body["whitelist"] = json!(except);
            ("disconnect", body)
        }
        Call::Refresh { whose, renewal } => {
            let mut body = meant(whose, rules);
            match renewal {
                Renewal::Token(token) => body["token"] = json!(**token),
                Renewal::ExpireAt(UnixSeconds(seconds)) => body["expire_at"] = json!(seconds),
                Renewal::Expired => body["expired"] = json!(true),
            }
            ("refresh", body)
        }
        Call::Connection { connection } => {
            ("connection", json!({ "connection": connection.to_uuid(rules.gateway) }))
        }
        Call::Channels { pattern: None } => ("channels", json!({})),
        Call::Channels { pattern: Some(pattern) } => {
            ("channels", json!({ "pattern": pattern.glob().glob() }))
        }
        Call::Info => ("info", json!({})),
        Call::Drain { grace, duration } => {
            let shown =
                |asked: &Option<Duration>| asked.map(|asked| show_duration(asked).to_string());
            ("drain", json!({ "grace": shown(grace), "duration": shown(duration) }))
        }
        Call::Shed { percent, duration } => {
            let duration = show_duration(*duration).to_string();
            ("shed", json!({ "percent": percent, "duration": duration }))
        }
    }
}

/// The connections of `whose`, as Centrifugo names them.
fn meant(whose: &Whose, rules: &Rules) -> Value {
    match whose {
        Whose::User(user) => json!({ "user": user.as_str() }),
        Whose::Connection { connection, user } => {
            let user = user.as_ref().map_or("", |user| user.as_str());
            json!({ "client": connection.to_uuid(rules.gateway), "user": user })
        }
    }
}

/// A value of the type that `error` complains of.
fn wrong_type(error: &ApiError) -> Value {
    let text = error.to_string();
    let types = [
        ("null", Value::Null),
        ("a boolean", json!(true)),
        ("a number", json!(1)),
        ("a list", json!([])),
        ("an object", json!({})),
    ];
    let found = types.into_iter().find(|(name, _)| text.contains(&format!("is {name};")));
    found.unwrap_or_else(|| panic!("{text}")).1
}

/// `parameters` and the message of `frame`.
fn with(mut parameters: Value, frame: &[u8]) -> Value {
    let header_bytes = if frame[1] < 126 { 2 } else { 4 };
    let (header, payload) = frame.split_at(header_bytes);
    if header[0] & 0x0f == Opcode::Text.bits() {
        parameters["data"] = str::from_utf8(payload).expect("text is UTF-8").into();
    } else {
        parameters["b64data"] = STANDARD.encode(payload).into();
    }
    parameters
}
