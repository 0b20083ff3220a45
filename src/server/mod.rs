//! How do listeners, threads, signals and the drain fit together?
//!
//! One thread for each shard, and this one, the control thread, for everything that is not the path
//! of a message: admin HTTP, signals, the drain, the metrics' hand-over. It answers at once whatever
//! the shards are doing.
//!
//! - [`settings`]: what the operator may decide.
//! - `sockets`: listening sockets and the limit of open files.
//! - `activation`: listening sockets that others have opened; `handover`: those of the gateway that ran
//!   before, and to the one that comes after.
//! - `admin`: the admin listener.
//! - [`reload`]: other settings for a gateway that runs.
//! - [`certificates`]: who the gateway is to clients that speak TLS.
//! - `drain`: the end.
//! - `notify`: what the service manager is told.
//! - `host`: what the settings want and this host does not give.

mod activation;
mod admin;
pub mod certificates;
mod drain;
mod handover;
mod host;
mod notify;
pub mod reload;
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
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::api::gateway::{ApiAccess, Gateway};
use crate::broker::memory::{self, Bounds};
use crate::pubsub::{GatewayId, ShardId};
use crate::server::certificates::{CertificateError, Certificates};
use crate::server::drain::Cause;
use crate::server::handover::{HandoverError, Office};
use crate::server::reload::{Applied, Reload};
use crate::server::settings::{Http2, ListenAddress, Settings};
use crate::server::sockets::{Listening, UnixPath};
use crate::shard::orders::Handle;
use crate::shard::{self, Entrance, Loads, Seed};
use crate::telemetry::counters::Counters;
use crate::telemetry::export::{BusyTime, Exporter};
use crate::wire::header::ProtocolError;

/// How often the sums of the shards' counters are handed to the metrics recorder.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(1);

/// Why the gateway could not start, or could not go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("{setting} is {address} and cannot be listened on: {source}. {remedy}")]
    Listen {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        address: ListenAddress,
        /// What to do.
        remedy: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
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
    /// What the service manager passes is no socket for the setting.
    #[error(
        "the socket that is passed for {setting} cannot be used: {problem}. Correct the .socket unit: \
         wsgate takes sockets that listen (ListenStream=), called listen, plain and admin"
    )]
    PassedSocket {
        /// Which setting.
        setting: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The socket for a successor cannot be made.
    #[error(
        "handover_socket is {path} and cannot be made: {source}. Name a file that does not exist, in a \
         folder that exists and that this user may write to, in less than 100 bytes"
    )]
    HandoverSocket {
        /// Its value.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody answers at the socket and does not hand over.
    #[error(
        "handover_socket is {path} and somebody answers there, but does not hand over: {source}. Stop \
         that process, or start this one without handover_socket"
    )]
    Handover {
        /// Its value.
        path: PathBuf,
        /// What came of it.
        source: HandoverError,
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
    fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// A shard's thread, seen from the control thread.
struct ShardThread {
    id: ShardId,
    /// Resolves when the thread ends.
    ended: oneshot::Receiver<Result<(), String>>,
}

/// Runs the gateway on this thread until it has drained. On SIGHUP `reload` is asked for other
/// settings.
///
/// # Errors
///
/// Why it could not start or go on.
pub fn serve(settings: Settings, reload: Reload) -> Result<(), ServeError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(ServeError::system("start the control thread's runtime"))?;
    runtime.block_on(run(settings, reload))
}

async fn run(mut settings: Settings, mut read: Reload) -> Result<(), ServeError> {
    let open_files = sockets::raise_open_files_limit();
    let shards = settings.shards.get();
    let max_connections = sockets::max_connections(settings.max_connections, open_files, shards);
    host::warn_of_conflicts(&settings);
    // Before anything listens, so that no signal finds its default action.
    let mut signals = Signals::new()?;
    let control_counters: Arc<Counters> = Arc::default();
    let certificates = match &settings.tls {
        Some(tls) => Some(Rc::new(Certificates::new(
            tls.clone(),
            settings.http2,
            Arc::clone(&control_counters),
        )?)),
        None => None,
    };
    let mut inherited = activation::passed()?;
    // Sockets that the manager keeps outlive this process, and so does who waits for them.
    let is_activated = !inherited.is_empty();
    let mut succession = None;
    if let Some(path) = &settings.handover_socket
        && let Some((predecessor, sockets)) = handover::take_over(path)?
    {
        succession = Some((predecessor, path));
        inherited.extend(sockets);
    }
    if succession.is_none()
        && let Some(path) = &settings.port_file
    {
        // One of an earlier run would tell where nobody listens any more. There may be none.
        _ = std::fs::remove_file(path);
    }
    let http2_by_prior_knowledge = settings.http2 == Http2::All;
    let plain = Entrance { tls: None, http2_by_prior_knowledge };
    let identity = certificates.as_ref().map(|certificates| certificates.identity());
    let tls = Entrance { tls: identity, http2_by_prior_knowledge };
    let mut listening = Listening::new(shards);
    let (wanted, wanted_plain) = (&settings.listen, &settings.plain_listen);
    let listen = listening.add(activation::LISTEN, wanted, &mut inherited, &tls)?;
    let plain_listen =
        listening.add(activation::PLAIN_LISTEN, wanted_plain, &mut inherited, &plain)?;
    let Listening { shards: listeners, mut shared, unix: mut unix_paths } = listening;
    let (admin_listen, admin_listener) =
        sockets::admin_listener(&mut inherited, settings.admin_listen)?;
    if settings.handover_socket.is_some() {
        let share = ServeError::system("share the listening sockets with a successor");
        let admin = admin_listener.try_clone().map_err(share)?;
        shared.push((activation::ADMIN_LISTEN, vec![admin.into()]));
    } else {
        // A socket listens for as long as somebody has a descriptor of it.
        shared.clear();
    }

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
    for (index, (((listeners, seat), orders), counters)) in parts {
        let id = ShardId::new(index as u16);
        let seed = Seed {
            id,
            gateway: gateway_id,
            settings: Arc::clone(&shard_settings),
            listeners,
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
    let mut drain_requests = gateway.drain_requests();
    let (leave_admin, leave) = watch::channel(false);
    let admin = admin::serve(Rc::clone(&gateway), admin_listener, leave);
    tokio::task::spawn_local(admin);
    tokio::task::spawn_local(hand_over(Rc::clone(&gateway)));
    tokio::task::spawn_local(notify::watchdog(Rc::clone(&gateway)));
    if let Some(certificates) = &certificates {
        tokio::task::spawn_local(Rc::clone(certificates).watch());
    }
    let is_successor = succession.is_some();
    if let Some((predecessor, path)) = succession {
        predecessor.ready(path).await?;
        unix_paths.iter_mut().for_each(UnixPath::take_over);
        info!(?path, "took over from the gateway that ran before");
    }
    let opened = settings.handover_socket.as_ref().map(|path| Office::open(path, shared));
    let port_file = settings.port_file.as_ref();
    let written = port_file.map(|path| write_port_file(path, &listen, &plain_listen, admin_listen));
    // Whoever has taken over is the only one there is, so it serves on without them.
    let forgiven = |error: ServeError| {
        if is_successor {
            error!("{error}");
            Ok(())
        } else {
            Err(error)
        }
    };
    let mut office = match opened {
        Some(Ok(office)) => Some(office),
        Some(Err(error)) => {
            forgiven(error)?;
            None
        }
        None => None,
    };
    if let Some(Err(error)) = written {
        forgiven(error)?;
    }
    info!(
        listen = list(&listen),
        plain_listen = (!plain_listen.is_empty()).then(|| list(&plain_listen)),
        %admin_listen,
        shards,
        max_connections,
        open_files,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    if settings.shard.console
        && let Some(url) = page_url(&listen, &plain_listen, settings.tls.is_some())
    {
        info!("to try it, open {url} in a browser");
    }
    let serving = format!("serving {} with {shards} shards", list(&listen));
    notify::ready(&serving, is_successor);

    // One future for all rounds: a reload must not cut a handover short.
    let mut succeeded = Box::pin(async {
        match &mut office {
            Some(office) => office.succeeded().await,
            None => std::future::pending().await,
        }
    });
    let cause = loop {
        tokio::select! {
            // In this order, so that a request counts before the signal that an orchestrator sends
            // right behind it.
            biased;
            Ok(request) = &mut drain_requests => break Cause::Request(request),
            word = signals.next() => match word {
                Word::End(signal) => break Cause::Signal(signal),
                Word::Reload => {
                    notify::reloading();
                    let applied = Applied { gateway: &gateway, admin_listen, open_files };
                    settings = reload::reload(&mut read, settings, &applied).await;
                    if let (Some(certificates), Some(tls)) = (&certificates, &settings.tls) {
                        certificates.reload(tls);
                    }
                    notify::ready(&serving, false);
                }
            },
            () = &mut succeeded => break Cause::Succeeded,
            error = first_to_end(&mut threads) => return Err(error),
        }
    };
    // Its descriptors would keep the sockets open, and nobody can follow a gateway that drains.
    drop(succeeded);
    // A drain that comes between does not keep a successor from going on.
    let has_successor = office.is_some_and(Office::close);
    if has_successor {
        // The successor's admin port is this one's.
        leave_admin.send_replace(true);
        unix_paths.iter_mut().for_each(UnixPath::leave);
    }
    // Of the signals that follow, this many are only another word for what goes on already: an
    // orchestrator sends one behind its request to drain.
    let mut patience = match cause {
        Cause::Signal(_) => 0,
        Cause::Request(_) | Cause::Succeeded => 1,
    };
    let sockets_stay = is_activated || has_successor;
    let mut drain =
        std::pin::pin!(drain::drain(&gateway, &settings, &mut threads, cause, sockets_stay));
    loop {
        tokio::select! {
            ended = &mut drain => return ended,
            word = signals.next() => match word {
                Word::End(signal) if patience == 0 => {
                    warn!(signal, connections = loads.total(), "second signal: ending at once");
                    return Ok(());
                }
                Word::End(signal) => {
                    patience -= 1;
                    info!(signal, "draining already; another signal ends at once");
                }
                Word::Reload => info!("draining: the configuration is not read any more"),
            },
        }
    }
}

/// Where a browser on this machine finds the console page; `None` behind Unix sockets alone.
fn page_url(
    listen: &[ListenAddress],
    plain_listen: &[ListenAddress],
    speaks_tls: bool,
) -> Option<String> {
    let schemes = [if speaks_tls { "https" } else { "http" }, "http"];
    let tcp = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) => Some(*address),
        ListenAddress::Unix(_) => None,
    };
    schemes.into_iter().zip([listen, plain_listen]).find_map(|(scheme, listen)| {
        let address = listen.iter().find_map(tcp)?;
        Some(if address.ip().is_unspecified() {
            format!("{scheme}://localhost:{}", address.port())
        } else {
            format!("{scheme}://{address}")
        })
    })
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

/// As operators write them.
fn list(addresses: &[ListenAddress]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Writes the addresses that were taken, at once or not at all: whoever sees the file can read it.
fn write_port_file(
    path: &Path,
    listen: &[ListenAddress],
    plain_listen: &[ListenAddress],
    admin_listen: SocketAddr,
) -> Result<(), ServeError> {
    let failed = |source| ServeError::PortFile { path: path.to_owned(), source };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let lines = |name: &str, addresses: &[ListenAddress]| -> String {
        addresses.iter().map(|address| format!("{name}={address}\n")).collect()
    };
    let (listen, plain_listen) = (lines("listen", listen), lines("plain_listen", plain_listen));
    let text = format!("{listen}{plain_listen}admin_listen={admin_listen}\n");
    std::fs::write(&unfinished, text).map_err(failed)?;
    std::fs::rename(&unfinished, path).map_err(failed)
}

/// A number that no other process has: from the keys that the standard library draws for its maps.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// What a signal asks for.
enum Word {
    /// The end. Its name is for the log.
    End(&'static str),
    /// Other settings.
    Reload,
}

/// The signals that this process acts on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, ServeError> {
        let listen = |kind| signal(kind).map_err(ServeError::system("listen for signals"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next of them.
    async fn next(&mut self) -> Word {
        tokio::select! {
            _ = self.terminate.recv() => Word::End("SIGTERM"),
            _ = self.interrupt.recv() => Word::End("SIGINT"),
            _ = self.hangup.recv() => Word::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_named_as_a_browser_on_this_machine_finds_it() {
        let listen = |addresses: &[&str]| -> Vec<ListenAddress> {
            let tcp = |address: &&str| ListenAddress::Tcp(address.parse().expect("an address"));
            addresses.iter().map(tcp).collect()
        };
        let unix = [ListenAddress::Unix("/run/a".into())];
        let url = |listen: &[ListenAddress], plain: &[ListenAddress], tls| {
            page_url(listen, plain, tls).unwrap_or_default()
        };
        assert_eq!(url(&listen(&["0.0.0.0:1"]), &[], false), "http://localhost:1");
        assert_eq!(url(&listen(&["[::]:1", "127.0.0.1:2"]), &[], true), "https://localhost:1");
        assert_eq!(url(&listen(&["[::1]:1"]), &listen(&["127.0.0.1:2"]), true), "https://[::1]:1");
        assert_eq!(url(&unix, &listen(&["127.0.0.1:2"]), true), "http://127.0.0.1:2");
        assert_eq!(url(&unix, &unix, true), "");
    }
}
