//! A shard's listening sockets, and which shard serves what they accept.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tracing::{debug, info, warn};

use crate::shard::drain::Stage;
use crate::shard::orders::Order;
use crate::shard::stream::tls::Identity;
use crate::shard::{Shard, handshake};
use crate::telemetry::counters::Rejection;

/// Sockets accepted before the connections that are there get their turn.
const MAX_ACCEPTS_PER_TURN: usize = 64;

/// Sockets that may wait to be told that there is no room. More are closed unanswered: the
/// descriptors kept back for telling are a bound too.
pub const MAX_REFUSED: usize = 32;

/// Connections that the kernel may keep for a listening socket until they are accepted. The kernel
/// lowers it to net.core.somaxconn.
pub const MAX_BACKLOG: u16 = 4_096;

/// How long to leave the backlog alone when the process or the machine has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How long to say nothing after having said that no descriptor is left. At the limit each client that
/// leaves ends that for a moment, so the log would get a line for each that comes and each that goes.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What is spoken on the sockets of one listener.
#[derive(Clone, Debug, Default)]
pub struct Entrance {
    /// TLS by this identity; none is a plain listener.
    pub tls: Option<Arc<Identity>>,
    /// Without TLS, a client may begin with HTTP/2 (RFC 9113 section 3.3).
    pub http2_by_prior_knowledge: bool,
}

/// One of a shard's listening sockets, non-blocking.
#[derive(Debug)]
pub struct Listener {
    /// Where.
    pub socket: ListeningSocket,
    /// What is spoken there.
    pub entrance: Entrance,
}

/// A listening socket of either kind.
#[derive(Debug)]
pub enum ListeningSocket {
    /// The shard's own, with `SO_REUSEPORT`.
    Tcp(StdTcpListener),
    /// One of all shards: whoever is first accepts.
    Unix(StdUnixListener),
}

impl ListeningSocket {
    /// Another descriptor of the same socket.
    ///
    /// # Errors
    ///
    /// There is none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }

    /// Where another socket can listen beside it.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl From<ListeningSocket> for OwnedFd {
    fn from(socket: ListeningSocket) -> Self {
        match socket {
            ListeningSocket::Tcp(socket) => socket.into(),
            ListeningSocket::Unix(socket) => socket.into(),
        }
    }
}

/// The same, watched by the shard's runtime.
enum Watched {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Watched {
    fn new(socket: ListeningSocket) -> io::Result<Self> {
        Ok(match socket {
            ListeningSocket::Tcp(socket) => Self::Tcp(TcpListener::from_std(socket)?),
            ListeningSocket::Unix(socket) => Self::Unix(UnixListener::from_std(socket)?),
        })
    }

    /// The next socket, non-blocking.
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            // It comes with the TCP_NODELAY of the listening one.
            Self::Tcp(listener) => Ok(listener.accept().await?.0),
            Self::Unix(listener) => {
                let socket = OwnedFd::from(listener.accept().await?.0.into_std()?);
                TcpStream::from_std(socket.into())
            }
        }
    }

    /// Those that the kernel has accepted already, and no more.
    fn into_backlog(self) -> io::Result<impl Iterator<Item = StdTcpStream>> {
        let accept: Box<dyn FnMut() -> io::Result<StdTcpStream>> = match self {
            Self::Tcp(listener) => {
                let listener = listener.into_std()?;
                Box::new(move || Ok(listener.accept()?.0))
            }
            Self::Unix(listener) => {
                let listener = listener.into_std()?;
                Box::new(move || Ok(OwnedFd::from(listener.accept()?.0).into()))
            }
        };
        let mut accept = accept;
        Ok(std::iter::from_fn(move || accept().ok()).take(MAX_BACKLOG.into()))
    }
}

/// Watches `listener` and accepts from it until a drain says to stop.
///
/// # Errors
///
/// It cannot be watched.
pub(crate) fn start(
    shard: &Rc<Shard>,
    listener: Listener,
) -> io::Result<impl Future<Output = ()> + use<>> {
    Ok(accept(Rc::clone(shard), Watched::new(listener.socket)?, listener.entrance))
}

async fn accept(shard: Rc<Shard>, listener: Watched, entrance: Entrance) {
    // When the log said last that no descriptor is left, and whether it has yet to say that this is
    // over.
    let mut told_at: Option<Instant> = None;
    let mut owes_the_end = false;
    loop {
        for _ in 0..MAX_ACCEPTS_PER_TURN {
            let accepted = tokio::select! {
                biased;
                () = shard.accepting_stopped() => {
                    // Where others accept from this socket, what waits there is theirs.
                    if shard.stage.get() != Stage::Leaving {
                        answer_backlog(&shard, listener, &entrance);
                    }
                    return;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(socket) => {
                    if std::mem::take(&mut owes_the_end) {
                        info!("accepting again");
                    }
                    admit(&shard, socket, &entrance);
                }
                Err(error) if is_exhaustion(&error) => {
                    if told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_AGAIN_AFTER) {
                        (told_at, owes_the_end) = (Some(Instant::now()), true);
                        warn!(
                            %error,
                            "cannot accept connections for now; if descriptors have run out, raise \
                             the limit of open files or lower max_connections"
                        );
                    }
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                // The client gave up while it waited, or its network did (accept(2), "Error
                // handling"): nothing to do with the next one.
                Err(error) => debug!(%error, "a client was gone before it was accepted"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Takes the connections that the kernel has accepted already. Closing the listening socket would
/// reset them; so they are told that the gateway is draining.
fn answer_backlog(shard: &Rc<Shard>, listener: Watched, entrance: &Entrance) {
    let Ok(backlog) = listener.into_backlog() else {
        return;
    };
    for socket in backlog {
        if socket.set_nonblocking(true).is_ok()
            && let Ok(socket) = TcpStream::from_std(socket)
        {
            admit(shard, socket, entrance);
        }
    }
}

/// Whether the process or the machine has too little of something to take a connection.
fn is_exhaustion(error: &io::Error) -> bool {
    let exhaustion = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhaustion.contains(&errno))
}

/// Serves a new socket here, or hands it to the shard that has least to do.
fn admit(shard: &Rc<Shard>, socket: TcpStream, entrance: &Entrance) {
    shard.counters.connections_accepted.increment();
    let accepted_at = Instant::now();
    let entrance = entrance.clone();
    if !shard.loads.try_enter() {
        refuse(shard, socket, entrance, accepted_at);
        return;
    }
    let target = shard.loads.place(shard.id);
    if target == shard.id {
        handshake::begin(shard, socket, entrance, accepted_at, None);
        return;
    }
    let Ok(socket) = socket.into_std() else {
        // It cannot be taken from this thread's epoll instance, so it cannot be used at all.
        shard.loads.leave(target);
        return;
    };
    let order = Order::Serve { socket, entrance, accepted_at };
    if let Err(Order::Serve { socket, entrance, accepted_at }) =
        shard.shards[target.index()].try_order(order)
    {
        // That shard is busy with other things; so serve it here after all.
        shard.loads.replace(target, shard.id);
        handshake::begin_handed_over(shard, socket, entrance, accepted_at);
    }
}

/// Answers with 503, as far as there are descriptors for that.
fn refuse(shard: &Rc<Shard>, socket: TcpStream, entrance: Entrance, accepted_at: Instant) {
    if shard.refused.get() >= MAX_REFUSED {
        shard.counters.connections_rejected[Rejection::Overload as usize].increment();
        return;
    }
    shard.refused.set(shard.refused.get() + 1);
    handshake::begin(shard, socket, entrance, accepted_at, Some(Rejection::Full));
}
