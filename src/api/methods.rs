//! The API's methods: Centrifugo's `publish`, `broadcast`, `disconnect`, `channels` and `info`, and
//! `send`, which it has not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use globset::{GlobBuilder, GlobMatcher};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::api::error::ApiError;
use crate::api::gateway::Gateway;
use crate::pubsub::{Batch, ChannelName, ConnectionId};
use crate::shard::orders::Order;
use crate::wire::close::{CloseCode, MAX_REASON_BYTES};
use crate::wire::frame;
use crate::wire::header::Opcode;

/// Channels of one broadcast.
const MAX_BROADCAST_CHANNELS: usize = 10_000;

/// How long to wait for a shard's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

type Parameters = Map<String, Value>;

/// Carries out `method`.
///
/// # Errors
///
/// Why it was not.
pub async fn call(
    gateway: &Gateway,
    method: &str,
    parameters: &Parameters,
) -> Result<Value, ApiError> {
    match method {
        "publish" => publish(gateway, parameters),
        "broadcast" => broadcast(gateway, parameters),
        "send" => send(gateway, parameters).await,
        "disconnect" => disconnect(gateway, parameters).await,
        "channels" => channels(gateway, parameters).await,
        "info" => Ok(info(gateway)),
        unknown => Err(ApiError::MethodNotFound(unknown.chars().take(64).collect())),
    }
}

/// `{"channel": …, "data": …}` or `"b64data"`.
fn publish(gateway: &Gateway, parameters: &Parameters) -> Result<Value, ApiError> {
    let channel = ChannelName::new(required_string(parameters, "channel")?)?;
    let batch = Arc::new(Batch::single(message(gateway, parameters)?, Instant::now()));
    publish_batch(gateway, channel, batch)?;
    Ok(json!({}))
}

/// `{"channels": […], "data": …}` or `"b64data"`. Answers for each channel.
fn broadcast(gateway: &Gateway, parameters: &Parameters) -> Result<Value, ApiError> {
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
    let batch = Arc::new(Batch::single(message(gateway, parameters)?, Instant::now()));
    let names = names.iter().map(|name| match name {
        Value::String(name) => Ok(ChannelName::new(name)?),
        other => Err(wrong_type("an entry of channels", "a string", other)),
    });
    // All names are read before the first publication leaves.
    let names: Vec<Result<ChannelName, ApiError>> = names.collect();
    let responses = names.into_iter().map(|name| {
        match name.and_then(|name| publish_batch(gateway, name, Arc::clone(&batch))) {
            Ok(()) => json!({ "result": {} }),
            Err(error) => error.to_json(),
        }
    });
    Ok(json!({ "responses": responses.collect::<Vec<Value>>() }))
}

fn publish_batch(
    gateway: &Gateway,
    channel: ChannelName,
    batch: Arc<Batch>,
) -> Result<(), ApiError> {
    match gateway.publisher.publish(channel, batch) {
        Ok(()) => {
            gateway.counters.publications_from_api.increment();
            Ok(())
        }
        Err(_) => {
            gateway.counters.mailbox_full.increment();
            Err(ApiError::Busy("the shard of this channel has more publications than it can take"))
        }
    }
}

/// `{"connection": id, "data": …}` or `"b64data"`.
async fn send(gateway: &Gateway, parameters: &Parameters) -> Result<Value, ApiError> {
    let connection = connection(gateway, parameters)?;
    let frame = message(gateway, parameters)?;
    ask_one(gateway, connection, |reply| Order::Send { connection, frame, reply }).await?;
    Ok(json!({}))
}

/// `{"connection": id, "code": 3000..=4999 or one of RFC 6455, "reason": …}`; code and reason may
/// also stand in an object `disconnect`, as in Centrifugo.
async fn disconnect(gateway: &Gateway, parameters: &Parameters) -> Result<Value, ApiError> {
    let connection = connection(gateway, parameters)?;
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
    ask_one(gateway, connection, |reply| Order::Disconnect { connection, code, reason, reply })
        .await?;
    Ok(json!({}))
}

/// `{"pattern": glob}`, or nothing for all. Answers with how many subscriptions each channel has.
async fn channels(gateway: &Gateway, parameters: &Parameters) -> Result<Value, ApiError> {
    let pattern = match string(parameters, "pattern")? {
        None | Some("") => None,
        Some(pattern) => Some(glob(pattern)?),
    };
    let mut answers = Vec::new();
    for shard in gateway.shards() {
        let (reply, answer) = oneshot::channel();
        let order = Order::Channels { pattern: pattern.clone(), reply };
        shard.try_order(order).map_err(|_| ApiError::Busy("a shard is busy"))?;
        answers.push(answer);
    }
    let mut counts = std::collections::BTreeMap::<ChannelName, usize>::new();
    for answer in answers {
        for (channel, subscriptions) in answered(answer).await? {
            *counts.entry(channel).or_default() += subscriptions;
        }
    }
    let channels = counts.into_iter().map(|(channel, subscriptions)| {
        (channel.as_str().to_owned(), json!({ "num_clients": subscriptions }))
    });
    Ok(json!({ "channels": channels.collect::<Map<String, Value>>() }))
}

fn glob(pattern: &str) -> Result<GlobMatcher, ApiError> {
    match GlobBuilder::new(pattern).build() {
        Ok(glob) => Ok(glob.compile_matcher()),
        Err(error) => {
            let text = format!("pattern is not a glob such as news:*: {}", error.kind());
            Err(ApiError::BadRequest(text))
        }
    }
}

fn info(gateway: &Gateway) -> Value {
    let sum = |read: fn(&crate::telemetry::counters::Counters) -> u64| -> u64 {
        gateway.shard_counters.iter().map(|counters| read(counters)).sum()
    };
    json!({ "nodes": [{
        "uid": gateway.id.to_string(),
        "name": "wsgate",
        "version": env!("CARGO_PKG_VERSION"),
        "num_clients": sum(|counters| counters.connections.value()),
        "num_channels": sum(|counters| counters.channels.value()),
        "num_subs": sum(|counters| counters.subscriptions.value()),
        "num_shards": gateway.shards().len(),
        "uptime": gateway.started_at.elapsed().as_secs(),
    }] })
}

/// Gives an order about one connection to its shard, which says whether the connection is open.
async fn ask_one(
    gateway: &Gateway,
    connection: ConnectionId,
    order: impl FnOnce(oneshot::Sender<bool>) -> Order,
) -> Result<(), ApiError> {
    let shard =
        gateway.shards().get(connection.shard.index()).ok_or(ApiError::ConnectionNotFound)?;
    let (reply, answer) = oneshot::channel();
    shard.try_order(order(reply)).map_err(|_| ApiError::Busy("the connection's shard is busy"))?;
    if answered(answer).await? { Ok(()) } else { Err(ApiError::ConnectionNotFound) }
}

async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(ApiError::Busy("a shard did not answer in time")),
    }
}

/// Which connection: `connection`, or `client` as in Centrifugo.
fn connection(gateway: &Gateway, parameters: &Parameters) -> Result<ConnectionId, ApiError> {
    let id = match string(parameters, "connection")? {
        Some(id) => id,
        None => string(parameters, "client")?
            .ok_or_else(|| missing("connection", "the X-Connection-Id of a connection"))?,
    };
    Ok(ConnectionId::parse_uuid(id, gateway.id)?)
}

/// The message as a server frame: a JSON string as that text, any other JSON value as its compact
/// text, `b64data` as binary.
fn message(gateway: &Gateway, parameters: &Parameters) -> Result<Bytes, ApiError> {
    match (parameters.get("data"), string(parameters, "b64data")?) {
        (Some(_), Some(_)) => {
            Err(ApiError::BadRequest("give data or b64data, not both".to_owned()))
        }
        (None, None) => Err(missing("data", "a JSON value, or b64data, a string in base64")),
        (Some(Value::String(text)), None) => encode(gateway, Opcode::Text, text.as_bytes()),
        (Some(value), None) => encode(gateway, Opcode::Text, value.to_string().as_bytes()),
        (None, Some(base64)) => {
            let data = base64::engine::general_purpose::STANDARD.decode(base64);
            let data = data.map_err(|error| {
                ApiError::BadRequest(format!(
                    "b64data is not base64 in the standard alphabet with padding: {error}"
                ))
            })?;
            encode(gateway, Opcode::Binary, &data)
        }
    }
}

fn encode(gateway: &Gateway, opcode: Opcode, payload: &[u8]) -> Result<Bytes, ApiError> {
    let (bytes, max_bytes) = (payload.len(), gateway.max_message_bytes);
    if bytes > max_bytes {
        return Err(ApiError::MessageTooBig { bytes, max_bytes });
    }
    Ok(frame::encode(opcode, payload))
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
