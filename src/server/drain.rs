//! The end of the process: not ready at once, still accepting for the grace, then closing what is open.
//! Where another process accepts from the same sockets, nobody is refused meanwhile.

use std::time::{Duration, Instant};

use tracing::{error, info};

use crate::api::gateway::{DrainRequest, Gateway, Phase};
use crate::server::settings::Settings;
use crate::server::{ServeError, ShardThread, notify};
use crate::shard::orders::{Handle, Order, tell_all};

/// What a shard gets beyond its own limits to end before it is given up.
const DRAIN_MARGIN: Duration = Duration::from_secs(4);

/// How long to wait until every shard has stopped to accept, before some are closed that have not.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a gateway drains.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    /// The one called this.
    Signal(&'static str),
    /// A call of the API.
    Request(DrainRequest),
    /// Another process has taken over.
    Succeeded,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Signal(name) => name,
            Self::Request(_) => "POST /api/drain",
            Self::Succeeded => "handover",
        }
    }
}

/// Drains the gateway. `sockets_stay`: they are open elsewhere too, so that whoever waits there is
/// served later.
pub(super) async fn drain(
    gateway: &Gateway,
    settings: &Settings,
    threads: &mut [ShardThread],
    cause: Cause,
    sockets_stay: bool,
) -> Result<(), ServeError> {
    let (mut grace, mut duration) = (settings.drain_grace, settings.drain_duration);
    if let Cause::Request(request) = cause {
        grace = request.grace.unwrap_or(grace);
        duration = request.duration.unwrap_or(duration);
    }
    let mut limit = duration + settings.shard.close_timeout + DRAIN_MARGIN;
    if sockets_stay || matches!(cause, Cause::Succeeded) {
        limit += settings.shard.handshake_timeout;
    }
    let started_at = Instant::now();
    let connections = gateway.loads().total();
    let (signal, status) = (cause.name(), format!("draining {connections} connections"));
    match cause {
        Cause::Signal(_) | Cause::Request(_) => {
            gateway.set_phase(Phase::Grace);
            notify::stopping(&status, grace + limit);
            info!(signal, connections, ?grace, "drain: not ready any more, still accepting");
            tokio::time::sleep(grace).await;
            if sockets_stay {
                leave(gateway.shards()).await;
            }
        }
        Cause::Succeeded => {
            // To the manager this process is none of its own any more.
            notify::status(&status);
            gateway.set_phase(Phase::Closing);
            leave(gateway.shards()).await;
            info!(signal, connections, ?grace, "drain: another process accepts, serving on");
            // Who has come last has time for what it came for.
            tokio::time::sleep(grace).await;
        }
    }

    gateway.set_phase(Phase::Closing);
    let connections = gateway.loads().total();
    info!(connections, ?duration, "drain: accepting no more, closing connections");
    let all_ended = async {
        tell_all(gateway.shards(), |reply| Order::Drain { duration, reply }).await;
        for shard in gateway.shards() {
            shard.order(Order::End).await;
        }
        for thread in threads.iter_mut() {
            if let Ok(Err(reason)) = (&mut thread.ended).await {
                error!(shard = %thread.id, reason, "a shard failed while draining");
            }
        }
    };
    if tokio::time::timeout(limit, all_ended).await.is_err() {
        return Err(ServeError::DrainTimeout { connections: gateway.loads().total() });
    }
    let took = started_at.elapsed();
    let cut = gateway.loads().total();
    info!(?took, cut, "drain: done");
    Ok(())
}

/// Has all shards stop to accept, and waits until they have: only then can none of them hand a new
/// socket to one that has closed all and waits for the end.
async fn leave(shards: &[Handle]) {
    let left = tell_all(shards, |reply| Order::Leave { reply });
    if tokio::time::timeout(LEAVE_TIMEOUT, left).await.is_err() {
        error!("a shard does not turn; what it accepts now may be cut");
    }
}
