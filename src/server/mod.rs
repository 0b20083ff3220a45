//! How do listeners, threads, signals and the drain fit together?
//!
//! One thread for each shard, and this one, the control thread, for everything that is not the path
//! of a message: admin HTTP, signals, the drain, the metrics' hand-over. It answers at once whatever
//! the shards are doing.
//!
//! - [`settings`]: what the operator may decide.
//! - `sockets`: listening sockets and the limit of open files.
//! - `admin`: the admin listener.

mod admin;
pub mod settings;
mod sockets;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::runtime::{Builder, LocalOptions, RuntimeMetrics};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot::{self, error::RecvError};
use tracing::{error, info, warn};

use crate::api::gateway::{ApiAccess, Gateway, Phase};
use crate::broker::memory::{self, Bounds};
use crate::pubsub::{GatewayId, ShardId};
use crate::server::settings::Settings;
use crate::shard::orders::{Handle, Order};
use crate::shard::{self, Loads, Seed};
use crate::telemetry::counters::Counters;
use crate::telemetry::export::{BusyTime, Exporter};
use crate::wire::header::ProtocolError;

/// How often the sums of the shards' counters are handed to the metrics recorder.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(1);

/// What a shard gets beyond its own limits to end before it is given up.
const DRAIN_MARGIN: Duration = Duration::from_secs(2);

/// Why the gateway could not start, or could not go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("{setting} is {address} and cannot be listened on: {source}. {remedy}")]
    Listen {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What to do.
        remedy: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses something that every gateway needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The port file cannot be written.
    #[error(
        "port_file is {path} and cannot be written: {source}. Name a file in a folder that \
             exists and that this user may write to"
    )]
    PortFile {
        /// Its value.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A shard's thread has ended though nobody asked it to.
    #[error("shard {shard} ended: {reason}")]
    ShardEnded {
        /// Which.
        shard: ShardId,
        /// How.
        reason: String,
    },
    /// The shards did not end in time.
    #[error("the drain did not end in time; {connections} connections were cut")]
    DrainTimeout {
        /// How many connections were left.
        connections: usize,
    },
}

impl ServeError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// A shard's thread, seen from the control thread.
struct ShardThread {
    id: ShardId,
    /// Resolves when the thread ends.
    ended: oneshot::Receiver<Result<(), String>>,
}

/// Runs the gateway on this thread until it has drained.
///
/// # Errors
///
/// Why it could not start or go on.
pub fn serve(settings: Settings) -> Result<(), ServeError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(ServeError::system("start the control thread's runtime"))?;
    runtime.block_on(run(settings))
}

async fn run(settings: Settings) -> Result<(), ServeError> {
    if let Some(path) = &settings.port_file {
        // One of an earlier run would tell where nobody listens any more. There may be none.
        _ = std::fs::remove_file(path);
    }
    let open_files = sockets::raise_open_files_limit();
    let shards = settings.shards.get();
    let max_connections = sockets::max_connections(settings.max_connections, open_files, shards);
    // Before anything listens, so that no signal finds its default action.
    let mut signals = Signals::new()?;
    let (listen, listeners) = sockets::listen_each("listen", settings.listen, shards)?;
    let (admin_listen, admin_listener) =
        sockets::listen_one("admin_listen", settings.admin_listen)?;

    let gateway_id = GatewayId::new(random());
    let loads = Arc::new(Loads::new(shards, max_connections));
    let bounds =
        Bounds { entries: settings.shard.mailbox_entries, bytes: settings.shard.mailbox_bytes };
    let (seats, publisher) = memory::connect(shards, bounds);
    let (handles, orders): (Vec<Handle>, Vec<_>) = (0..shards).map(|_| Handle::new()).unzip();
    let handles: Arc<[Handle]> = handles.into();
    let counters: Vec<Arc<Counters>> = (0..shards).map(|_| Arc::default()).collect();
    let shard_settings = Arc::new(settings.shard.clone());
    let mut threads = Vec::new();
    let mut busy_times = Vec::new();
    let parts = listeners.into_iter().zip(seats).zip(orders).zip(&counters).enumerate();
    for (index, (((listener, seat), orders), counters)) in parts {
        let id = ShardId::new(index as u16);
        let seed = Seed {
            id,
            gateway: gateway_id,
            settings: Arc::clone(&shard_settings),
            listener,
            seat,
            orders,
            shards: Arc::clone(&handles),
            loads: Arc::clone(&loads),
            counters: Arc::clone(counters),
        };
        let (started, thread) = start_shard(seed)?;
        match started.await {
            Ok(metrics) => {
                let busy_time: BusyTime = Box::new(move || metrics.worker_total_busy_duration(0));
                busy_times.push(busy_time);
            }
            Err(_) => return Err(ended_early(id, thread.ended.await)),
        }
        threads.push(thread);
    }

    let control_counters: Arc<Counters> = Arc::default();
    let kinds = &ProtocolError::KINDS;
    let exporter = Exporter::new(&counters, Arc::clone(&control_counters), busy_times, kinds)
        .expect("the buckets of the histograms are not empty");
    let access = api_access(&settings, admin_listen);
    let gateway = Rc::new(Gateway::new(
        gateway_id,
        access,
        settings.shard.max_message_bytes,
        publisher,
        Arc::clone(&handles),
        Arc::clone(&loads),
        control_counters,
        counters,
        exporter,
        Instant::now(),
    ));
    tokio::task::spawn_local(admin::serve(Rc::clone(&gateway), admin_listener));
    tokio::task::spawn_local(hand_over(Rc::clone(&gateway)));
    if let Some(path) = &settings.port_file {
        write_port_file(path, listen, admin_listen)?;
    }
    info!(
        %listen,
        %admin_listen,
        shards,
        max_connections,
        open_files,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );

    let signal = tokio::select! {
        signal = signals.next() => signal,
        error = first_to_end(&mut threads) => return Err(error),
    };
    let drain = drain(&gateway, &settings, &mut threads, signal);
    tokio::select! {
        ended = drain => ended,
        signal = signals.next() => {
            warn!(signal, connections = loads.total(), "second signal: ending at once");
            Ok(())
        }
    }
}

/// Starts the thread of one shard.
fn start_shard(seed: Seed) -> Result<(oneshot::Receiver<RuntimeMetrics>, ShardThread), ServeError> {
    let id = seed.id;
    let (started_sender, started) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    thread::Builder::new()
        .name(format!("shard-{id}"))
        .spawn(move || {
            let ended = shard::run(seed, started_sender).map_err(|error| error.to_string());
            // The control thread may have ended first.
            _ = ended_sender.send(ended);
        })
        .map_err(ServeError::system("start a shard's thread"))?;
    Ok((started, ShardThread { id, ended }))
}

/// What to say of a shard that has ended without being asked to.
fn ended_early(shard: ShardId, ended: Result<Result<(), String>, RecvError>) -> ServeError {
    let reason = match ended {
        Ok(Ok(())) => "nobody asked it to".to_owned(),
        Ok(Err(reason)) => reason,
        Err(_) => "it panicked".to_owned(),
    };
    ServeError::ShardEnded { shard, reason }
}

/// Waits for a shard to end that should not.
async fn first_to_end(threads: &mut [ShardThread]) -> ServeError {
    std::future::poll_fn(|cx| {
        let ended =
            threads.iter_mut().find_map(|thread| match Pin::new(&mut thread.ended).poll(cx) {
                Poll::Ready(ended) => Some(ended_early(thread.id, ended)),
                Poll::Pending => None,
            });
        ended.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Not ready at once; still accepting for the grace; then closing what is open; then the end.
async fn drain(
    gateway: &Gateway,
    settings: &Settings,
    threads: &mut [ShardThread],
    signal: &'static str,
) -> Result<(), ServeError> {
    let (grace, duration) = (settings.drain_grace, settings.drain_duration);
    let started_at = Instant::now();
    let connections = gateway.loads().total();
    gateway.set_phase(Phase::Grace);
    info!(signal, connections, ?grace, "drain: not ready any more, still accepting");
    tokio::time::sleep(grace).await;

    gateway.set_phase(Phase::Closing);
    let connections = gateway.loads().total();
    info!(connections, ?duration, "drain: accepting no more, closing connections");
    for shard in gateway.shards() {
        shard.order(Order::Drain { duration }).await;
    }
    let limit = duration + settings.shard.close_timeout;
    let all_ended = async {
        for thread in threads.iter_mut() {
            if let Ok(Err(reason)) = (&mut thread.ended).await {
                error!(shard = %thread.id, reason, "a shard failed while draining");
            }
        }
    };
    if tokio::time::timeout(limit + DRAIN_MARGIN, all_ended).await.is_err() {
        return Err(ServeError::DrainTimeout { connections: gateway.loads().total() });
    }
    let took = started_at.elapsed();
    let cut = gateway.loads().total();
    info!(?took, cut, "drain: done");
    Ok(())
}

/// Hands the metrics over, again and again.
async fn hand_over(gateway: Rc<Gateway>) {
    let mut interval = tokio::time::interval(HAND_OVER_INTERVAL);
    loop {
        interval.tick().await;
        gateway.hand_over_metrics(Instant::now());
    }
}

fn api_access(settings: &Settings, admin_listen: SocketAddr) -> ApiAccess {
    match &settings.api_key {
        Some(key) => ApiAccess::Key(key.expose().to_owned()),
        None if admin_listen.ip().is_loopback() => {
            info!(
                %admin_listen,
                "no api_key is set: every process on this machine may use the API"
            );
            ApiAccess::Loopback
        }
        None => {
            warn!(
                %admin_listen,
                "no api_key is set and admin_listen is not a loopback address: the API is off. Set \
                 api_key (WSGATE_API_KEY), or listen on 127.0.0.1"
            );
            ApiAccess::Off
        }
    }
}

/// Writes the addresses that were taken, at once or not at all: whoever sees the file can read it.
fn write_port_file(
    path: &Path,
    listen: SocketAddr,
    admin_listen: SocketAddr,
) -> Result<(), ServeError> {
    let failed = |source| ServeError::PortFile { path: path.to_owned(), source };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let text = format!("listen={listen}\nadmin_listen={admin_listen}\n");
    std::fs::write(&unfinished, text).map_err(failed)?;
    std::fs::rename(&unfinished, path).map_err(failed)
}

/// A number that no other process has: from the keys that the standard library draws for its maps.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, ServeError> {
        let listen = |kind| signal(kind).map_err(ServeError::system("listen for signals"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
