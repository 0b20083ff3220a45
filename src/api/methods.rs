//! Carries out what a [`Call`] asks for: Centrifugo's `publish`, `broadcast`, `disconnect`, `channels`
//! and `info`, and `send`, which it has not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use globset::GlobMatcher;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::api::error::ApiError;
use crate::api::gateway::Gateway;
use crate::api::request::Call;
use crate::pubsub::{Batch, ChannelName, ConnectionId};
use crate::shard::orders::Order;

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
            ask_one(gateway, connection, |reply| Order::Send { connection, frame, reply }).await
        }
        Call::Disconnect { connection, code, reason } => {
            let order = |reply| Order::Disconnect { connection, code, reason, reply };
            ask_one(gateway, connection, order).await
        }
        Call::Channels { pattern } => channels(gateway, pattern).await,
        Call::Info => Ok(info(gateway)),
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

/// Answers with how many subscriptions each channel has.
async fn channels(gateway: &Gateway, pattern: Option<GlobMatcher>) -> Result<Value, ApiError> {
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
) -> Result<Value, ApiError> {
    let shard =
        gateway.shards().get(connection.shard.index()).ok_or(ApiError::ConnectionNotFound)?;
    let (reply, answer) = oneshot::channel();
    shard.try_order(order(reply)).map_err(|_| ApiError::Busy("the connection's shard is busy"))?;
    if answered(answer).await? { Ok(json!({})) } else { Err(ApiError::ConnectionNotFound) }
}

async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(ApiError::Busy("a shard did not answer in time")),
    }
}
