//! Carries out what a [`Call`] asks for: Centrifugo's `publish`, `broadcast`, `disconnect`, `refresh`,
//! `channels` and `info`, and `send`, `connection`, `drain` and `shed`, which it has not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use globset::GlobMatcher;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::api::error::ApiError;
use crate::api::gateway::{DrainRequest, Gateway, Phase};
use crate::api::request::Call;
use crate::auth::access::RenewalError;
use crate::pubsub::{Batch, ChannelName, ConnectionId};
use crate::shard::orders::{Description, Order, Refreshed, Renewal, Shed, Whose};

/// How long to wait for a shard's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Carries out `call` and returns its result.
///
/// # Errors
///
/// Why it was not.
pub async fn carry_out(gateway: &Gateway, call: Call) -> Result<Value, ApiError> {
    match call {
        Call::Publish { channel, frame } => {
            publish_batch(gateway, channel, Arc::new(Batch::single(frame, Instant::now())))?;
            Ok(json!({}))
        }
        Call::Broadcast { channels, frame } => Ok(broadcast(gateway, channels, frame)),
        Call::Send { connection, frame } => {
            tell_one(gateway, connection, |reply| Order::Send { connection, frame, reply }).await
        }
        Call::Disconnect {
            whose: Whose::Connection { connection, user }, code, reason, ..
        } => {
            let order = |reply| Order::Disconnect { connection, user, code, reason, reply };
            tell_one(gateway, connection, order).await
        }
        Call::Disconnect { whose: Whose::User(user), except, code, reason } => {
            let order = |reply| {
                let (user, except, reason) = (user.clone(), except.clone(), reason.clone());
                Order::DisconnectUser { user, except, code, reason, reply }
            };
            ask_all(gateway, order).await?;
            Ok(json!({}))
        }
        Call::Refresh { whose, renewal } => refresh(gateway, whose, renewal).await,
        Call::Connection { connection } => describe(gateway, connection).await,
        Call::Channels { pattern } => channels(gateway, pattern).await,
        Call::Info => info(gateway).await,
        Call::Drain { grace, duration } => drain(gateway, DrainRequest { grace, duration }),
        Call::Shed { percent, duration } => shed(gateway, percent, duration).await,
    }
}

/// Answers for each channel.
fn broadcast(
    gateway: &Gateway,
    channels: Vec<Result<ChannelName, ApiError>>,
    frame: Bytes,
) -> Value {
    let batch = Arc::new(Batch::single(frame, Instant::now()));
    let responses = channels.into_iter().map(|name| {
        match name.and_then(|name| publish_batch(gateway, name, Arc::clone(&batch))) {
            Ok(()) => json!({ "result": {} }),
            Err(error) => error.to_json(),
        }
    });
    json!({ "responses": responses.collect::<Vec<Value>>() })
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

/// Renews the token of one connection, or of all that a user has.
async fn refresh(gateway: &Gateway, whose: Whose, renewal: Renewal) -> Result<Value, ApiError> {
    let order = |reply| Order::Refresh { whose: whose.clone(), renewal: renewal.clone(), reply };
    let answers = match &whose {
        Whose::Connection { connection, .. } => {
            vec![ask_one(gateway, *connection, order).await?]
        }
        Whose::User(_) => ask_all(gateway, order).await?,
    };
    for answer in answers {
        match answer {
            Refreshed::Done => {}
            Refreshed::NotFound => return Err(ApiError::ConnectionNotFound),
            Refreshed::Anonymous => return Err(ApiError::ConnectionAnonymous),
            Refreshed::Refused(error) => {
                if let RenewalError::Token(error) = &error {
                    gateway.counters.token_rejections[error.index()].increment();
                }
                return Err(ApiError::Token(error));
            }
        }
    }
    Ok(json!({}))
}

/// Answers with how many subscriptions each channel has.
async fn channels(gateway: &Gateway, pattern: Option<GlobMatcher>) -> Result<Value, ApiError> {
    let order = |reply| Order::Channels { pattern: pattern.clone(), reply };
    let mut counts = std::collections::BTreeMap::<ChannelName, usize>::new();
    for (channel, subscriptions) in ask_all(gateway, order).await?.into_iter().flatten() {
        *counts.entry(channel).or_default() += subscriptions;
    }
    let channels = counts.into_iter().map(|(channel, subscriptions)| {
        (channel.as_str().to_owned(), json!({ "num_clients": subscriptions }))
    });
    Ok(json!({ "channels": channels.collect::<Map<String, Value>>() }))
}

/// Answers with what there is of everything.
async fn info(gateway: &Gateway) -> Result<Value, ApiError> {
    // A shard that answers has counted whoever it has let in: so whoever was let in is counted.
    ask_all(gateway, |reply| Order::Beat { reply }).await?;
    let sum = |read: fn(&crate::telemetry::counters::Counters) -> u64| -> u64 {
        gateway.shard_counters.iter().map(|counters| read(counters)).sum()
    };
    Ok(json!({ "nodes": [{
        "uid": gateway.id.to_string(),
        "name": "wsgate",
        "version": env!("CARGO_PKG_VERSION"),
        "num_clients": sum(|counters| counters.connections.value()),
        "num_channels": sum(|counters| counters.channels.value()),
        "num_subs": sum(|counters| counters.subscriptions.value()),
        "num_shards": gateway.shards().len(),
        "uptime": gateway.started_at.elapsed().as_secs(),
    }] }))
}

/// Begins a drain, and answers before it is over.
fn drain(gateway: &Gateway, request: DrainRequest) -> Result<Value, ApiError> {
    match gateway.request_drain(request) {
        true => Ok(json!({})),
        false => Err(ApiError::Conflict("the gateway drains already")),
    }
}

/// Begins to close a share of the connections, and answers with how many that are before they are
/// closed.
async fn shed(gateway: &Gateway, percent: f64, duration: Duration) -> Result<Value, ApiError> {
    if gateway.phase() != Phase::Serving {
        return Err(ApiError::Conflict("the gateway drains"));
    }
    let now = Instant::now();
    if gateway.shedding_until.get().is_some_and(|until| now < until) {
        return Err(ApiError::Conflict("connections are being shed already"));
    }
    gateway.shedding_until.set(Some(now + duration));
    let mut answers = Vec::new();
    for (index, shard) in gateway.shards().iter().enumerate() {
        let rounding = (index as f64 + 0.5) / gateway.shards().len() as f64;
        let shed = Shed { share: percent / 100.0, rounding, duration };
        let (reply, answer) = oneshot::channel();
        // All or none would take a second round of orders; so those that can begin do.
        if shard.try_order(Order::Shed { shed, reply }).is_ok() {
            answers.push(answer);
        }
    }
    let mut counts = Vec::new();
    for answer in answers {
        // One that is late closes nobody.
        counts.extend(answered(answer).await);
    }
    if counts.is_empty() {
        gateway.shedding_until.set(None);
        return Err(ApiError::Busy("all shards are busy"));
    }
    let connections: usize = counts.iter().sum();
    tracing::info!(percent, ?duration, connections, "shedding connections");
    Ok(json!({ "num_clients": connections }))
}

/// Gives an order about one connection to its shard, and returns the answer.
async fn ask_one<T>(
    gateway: &Gateway,
    connection: ConnectionId,
    order: impl FnOnce(oneshot::Sender<T>) -> Order,
) -> Result<T, ApiError> {
    let shard =
        gateway.shards().get(connection.shard.index()).ok_or(ApiError::ConnectionNotFound)?;
    let (reply, answer) = oneshot::channel();
    shard.try_order(order(reply)).map_err(|_| ApiError::Busy("the connection's shard is busy"))?;
    answered(answer).await
}

/// Gives an order about one connection to its shard, which says whether the connection is open.
async fn tell_one(
    gateway: &Gateway,
    connection: ConnectionId,
    order: impl FnOnce(oneshot::Sender<bool>) -> Order,
) -> Result<Value, ApiError> {
    let is_open = ask_one(gateway, connection, order).await?;
    if is_open { Ok(json!({})) } else { Err(ApiError::ConnectionNotFound) }
}

/// Gives an order to every shard, and returns their answers. Where one is busy the others may have
/// carried it out: whoever calls again does no harm.
async fn ask_all<T>(
    gateway: &Gateway,
    order: impl Fn(oneshot::Sender<T>) -> Order,
) -> Result<Vec<T>, ApiError> {
    let mut answers = Vec::new();
    for shard in gateway.shards() {
        let (reply, answer) = oneshot::channel();
        shard.try_order(order(reply)).map_err(|_| ApiError::Busy("a shard is busy"))?;
        answers.push(answer);
    }
    let mut answered_by_all = Vec::with_capacity(answers.len());
    for answer in answers {
        answered_by_all.push(answered(answer).await?);
    }
    Ok(answered_by_all)
}

/// Answers with where the client of a connection is, and with its channels.
async fn describe(gateway: &Gateway, connection: ConnectionId) -> Result<Value, ApiError> {
    let order = |reply| Order::Describe { connection, reply };
    let found = ask_one(gateway, connection, order).await?;
    let Description { address, channels } = found.ok_or(ApiError::ConnectionNotFound)?;
    let channels: Vec<&str> = channels.iter().map(ChannelName::as_str).collect();
    Ok(json!({
        "connection": connection.to_uuid(gateway.id),
        "address": address.map(|address| address.to_string()),
        "channels": channels,
    }))
}

async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(ApiError::Busy("a shard did not answer in time")),
    }
}
