//! A shard's listening socket, and which shard serves what it accepts.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use crate::shard::orders::Order;
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

/// Accepts until a drain says to stop.
pub(crate) async fn accept(shard: Rc<Shard>, listener: TcpListener) {
    // When the log said last that no descriptor is left, and whether it has yet to say that this is
    // over.
    let mut told_at: Option<Instant> = None;
    let mut owes_the_end = false;
    loop {
        for _ in 0..MAX_ACCEPTS_PER_TURN {
            // The socket comes non-blocking and with the TCP_NODELAY of the listening one.
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shard.stop_accepting.notified() => {
                    answer_backlog(&shard, listener);
                    return;
                }
            };
            match accepted {
                Ok((socket, _)) => {
                    if std::mem::take(&mut owes_the_end) {
                        info!("accepting again");
                    }
                    admit(&shard, socket);
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
fn answer_backlog(shard: &Rc<Shard>, listener: TcpListener) {
    let Ok(listener) = listener.into_std() else {
        return;
    };
    for _ in 0..MAX_BACKLOG {
        let Ok((socket, _)) = listener.accept() else {
            return;
        };
        if socket.set_nonblocking(true).is_ok()
            && let Ok(socket) = TcpStream::from_std(socket)
        {
            admit(shard, socket);
        }
    }
}

/// Whether the process or the machine has too little of something to take a connection.
fn is_exhaustion(error: &io::Error) -> bool {
    let exhaustion = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhaustion.contains(&errno))
}

/// Serves a new socket here, or hands it to the shard that has least to do.
fn admit(shard: &Rc<Shard>, socket: TcpStream) {
    shard.counters.connections_accepted.increment();
    let accepted_at = Instant::now();
    if !shard.loads.try_enter() {
        refuse(shard, socket, accepted_at);
        return;
    }
    let target = shard.loads.place(shard.id);
    if target == shard.id {
        handshake::begin(shard, socket, accepted_at, None);
        return;
    }
    let Ok(socket) = socket.into_std() else {
        // It cannot be taken from this thread's epoll instance, so it cannot be used at all.
        shard.loads.leave(target);
        return;
    };
    let order = Order::Serve { socket, accepted_at };
    if let Err(Order::Serve { socket, accepted_at }) = shard.shards[target.index()].try_order(order)
    {
        // That shard is busy with other things; so serve it here after all.
        shard.loads.replace(target, shard.id);
        handshake::begin_handed_over(shard, socket, accepted_at);
    }
}

/// Answers with 503, as far as there are descriptors for that.
fn refuse(shard: &Rc<Shard>, socket: TcpStream, accepted_at: Instant) {
    if shard.refused.get() >= MAX_REFUSED {
        shard.counters.connections_rejected[Rejection::Overload as usize].increment();
        return;
    }
    shard.refused.set(shard.refused.get() + 1);
    handshake::begin(shard, socket, accepted_at, Some(Rejection::Full));
}
