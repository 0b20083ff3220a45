//! One HTTP/2 connection, on which each extended CONNECT opens a WebSocket of its own (RFC 8441).
//!
//! hyper reads and writes the frames of HTTP/2, [`answer`](super::answer) judges each request as it does
//! those of HTTP/1.1, and each stream that was answered with 200 becomes a connection like any other, with
//! a slot, a driver and a count of its own. The socket keeps the slot of its handshake for as long as it
//! is there, so it counts as a connection too.
//!
//! Nothing that a client sends makes room without a bound: see the constants.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::{Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::shard::Shard;
use crate::shard::drain::Stage;
use crate::shard::handshake::answer::{Accepted, Answer, Outcome, Refusal, Upgrade, answer};
use crate::shard::handshake::check_in::{CheckIn, Limited};
use crate::shard::handshake::opening::{Opening, open};
use crate::shard::handshake::proxied::Role;
use crate::shard::handshake::{
    Handshake, MAX_HEAD_BYTES, Reservation, caught, in_time, reject, reserve,
};
use crate::shard::stream::Stream;
use crate::shard::stream::http2::{Http2, Siblings};
use crate::telemetry::counters::{HTTP_2, Rejection};

/// WebSockets on one connection at a time; a client that wants more opens another connection. A page has
/// a few.
const MAX_STREAMS: u32 = 100;

/// What a client may send on one stream before it is read, as the kernel's buffer for a socket.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// The windows of all streams together, so that one which is not read for a while, such as that of a
/// publisher to a congested channel, holds up no other. h2 allows for what small frames take beside their
/// bytes by it, too, and ends a connection with more of them unread.
const CONNECTION_WINDOW_BYTES: u32 = MAX_STREAMS * STREAM_WINDOW_BYTES;

/// The same for a trusted proxy, where those who are not read are not all of one client.
const PROXY_WINDOW_BYTES: u32 = 8 * CONNECTION_WINDOW_BYTES;

/// Bytes of one stream that hyper holds for a client that does not take them. The outbound queue is before
/// it.
const MAX_SEND_BYTES: usize = 64 * 1024;

/// Requests that the client took back before they were looked at. More in a row is the attack called rapid
/// reset (CVE-2023-44487), and ends the connection.
const MAX_PENDING_RESETS: usize = 20;

/// The same of a trusted proxy: many of its clients can give up together.
const MAX_PENDING_RESETS_OF_PROXY: usize = 10_000;

/// Streams that were reset for what the client did wrong on them, such as a path that is none. More ends
/// the connection (RUSTSEC-2024-0003). A trusted proxy brings what all its clients do wrong for as long as
/// it runs, and reads what it is told: there is no bound for it, or anybody could end everybody's.
const MAX_ERROR_RESETS: usize = 100;

/// Requests that hyper itself refuses before others have their turn. h2 takes no more of them while the
/// socket takes nothing.
const MAX_REFUSALS_PER_TURN: usize = 100;

/// How an HTTP/2 connection begins (RFC 9113 section 3.4), as far as no request of HTTP/1 does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// The version that the first bytes on a plain socket speak of. They stay unread.
pub(super) async fn first_version(socket: &TcpStream) -> Version {
    match begins_with_preface(socket).await {
        Ok(true) => Version::HTTP_2,
        // What else there is to say about the socket, the first read of it says.
        Ok(false) | Err(_) => Version::HTTP_11,
    }
}

async fn begins_with_preface(socket: &TcpStream) -> io::Result<bool> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let ready = socket.ready(Interest::READABLE).await?;
        let seen = socket.peek(&mut bytes).await?;
        if bytes == *PREFACE {
            return Ok(true);
        }
        // Where no more will come tokio calls the socket readable again at once, for ever.
        if !PREFACE.starts_with(&bytes[..seen]) || ready.is_read_closed() {
            return Ok(false);
        }
        // The next look has to wait for more than what is there.
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        _ = socket.try_io(Interest::READABLE, nothing);
    }
}

/// What the streams of one connection share.
struct Connection {
    shard: Rc<Shard>,
    /// The socket's.
    handshake: Rc<Handshake>,
    /// A request has come since somebody looked.
    was_used: Cell<bool>,
    /// A request has come for which the socket itself had to come in.
    has_asked: Cell<bool>,
    /// Each stream holds it, too.
    siblings: Arc<Siblings>,
    /// The client or hyper has ended the socket.
    is_over: Cell<bool>,
    /// Streams that were answered with 200 in this very turn.
    answered: RefCell<Vec<Answered>>,
}

/// A stream whose answer is with hyper.
struct Answered {
    reserved: Reservation,
    accepted: Accepted,
    began_at: Instant,
    siblings: Arc<Siblings>,
}

impl Connection {
    /// A trusted proxy is at the other end, which says in each request for whom it speaks.
    fn is_of_proxy(&self) -> bool {
        self.handshake.remote.get().is_some_and(|remote| remote.role == Role::Proxy)
    }

    fn has_streams(&self) -> bool {
        Arc::strong_count(&self.siblings) > 1
    }

    /// Judges one request.
    async fn answer(&self, mut request: Request<Incoming>) -> Answer {
        let (shard, began_at) = (&self.shard, Instant::now());
        self.was_used.set(true);
        if request.method() != Method::CONNECT || self.handshake.is_refused() {
            // No connection comes of it, also where the next request is somebody else's.
            if let Err(limited) = self.try_ask_again() {
                return self.refuse(&self.handshake, &Refusal::Limited(limited));
            }
            let answer = match answer(shard, &self.handshake, &mut request).await {
                Ok(Outcome::Page(page)) => self.count_page(page),
                Ok(Outcome::Connection(..)) => self.refuse(&self.handshake, &Refusal::Full),
                Err(refusal) => self.refuse(&self.handshake, &refusal),
            };
            if self.is_of_proxy() {
                self.handshake.check_in.replace(CheckIn::Later);
            }
            return answer;
        }
        if !shard.loads.try_enter_at(shard.id) {
            return self.refuse(&self.handshake, &Refusal::Full);
        }
        let Some(reserved) = reserve(shard, began_at, None) else {
            return self.refuse(&self.handshake, &Refusal::Full);
        };
        let siblings = Arc::clone(&self.siblings);
        let handshake = Rc::clone(&reserved.handshake);
        // Each stream has to come in too: it is a connection of its own.
        handshake.remote.set(self.handshake.remote.get());
        let judged = pin!(answer(shard, &handshake, &mut request));
        match in_time(&handshake, judged).await {
            Some(Ok(Outcome::Page(page))) => self.count_page(page),
            Some(Ok(Outcome::Connection(response, accepted))) => {
                let answered = Answered { reserved, accepted, began_at, siblings };
                self.answered.borrow_mut().push(answered);
                response
            }
            Some(Err(refusal)) => self.refuse(&handshake, &refusal),
            None => {
                reject(shard, &handshake, Rejection::Timeout);
                let mut response = Answer::default();
                *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
                response
            }
        }
    }

    /// A request that is no WebSocket's costs as much as one on a socket of its own, so the limits of
    /// handshakes are its, too. With the first of them the socket has come in.
    fn try_ask_again(&self) -> Result<(), Limited> {
        if !self.has_asked.replace(true) {
            return Ok(());
        }
        match &*self.handshake.check_in.borrow() {
            CheckIn::In(client, _) => client.try_ask_again(&self.shard),
            CheckIn::Later | CheckIn::Refused { .. } => Ok(()),
        }
    }

    fn refuse(&self, handshake: &Handshake, refusal: &Refusal) -> Answer {
        reject(&self.shard, handshake, refusal.reason());
        refusal.response()
    }

    fn count_page(&self, page: Answer) -> Answer {
        self.shard.counters.console_requests.increment();
        page
    }

    /// Makes connections of the streams whose answer is on its way. The socket's task, which writes that,
    /// has not run since: what is published from now on is heard, and nothing before.
    fn open_answered(&self) {
        for answered in self.answered.take() {
            let Answered { mut reserved, accepted, began_at, siblings } = answered;
            let Accepted { upgrade, target, coding, subscriptions, identity } = accepted;
            let Upgrade::Http2(mut upgrade) = upgrade else { continue };
            let upgraded = Pin::new(&mut upgrade).poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(Ok(upgraded)) = upgraded else {
                // The client has taken it back.
                reject(&self.shard, &reserved.handshake, Rejection::Disconnected);
                continue;
            };
            reserved.is_kept = true;
            self.shard.counters.handshakes[HTTP_2].increment();
            self.shard.counters.handshake_duration.record(began_at.elapsed());
            let opening = Opening {
                id: reserved.handshake.id,
                check_in: reserved.handshake.check_in.take(),
                socket: Stream::Http2(Box::new(Http2::new(upgraded, siblings))),
                early: bytes::Bytes::new(),
                target,
                coding,
                subscriptions,
                identity,
            };
            open(&self.shard, opening);
        }
    }
}

/// Runs the tasks of hyper's streams on this shard.
#[derive(Clone)]
struct Tasks(Rc<Connection>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        let connection = Rc::clone(&self.0);
        tokio::task::spawn_local(async move {
            let id = connection.handshake.id;
            caught(Rc::clone(&connection.shard), id, stream).await;
            connection.open_answered();
        });
    }
}

/// The socket, as hyper uses it.
struct Socket {
    stream: Stream,
    connection: Rc<Connection>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if matches!(read, Poll::Ready(Err(_))) || read.is_ready() && buffer.remaining() == before {
            self.connection.is_over.set(true);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.is_over.set(true);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Has hyper go on. Ready at the end of the socket.
fn poll_http<F>(mut http: Pin<&mut F>, connection: &Connection, cx: &mut Context<'_>) -> Poll<()>
where
    F: Future<Output = hyper::Result<()>>,
{
    for _ in 0..MAX_REFUSALS_PER_TURN {
        let polled = http.as_mut().poll(cx);
        if !matches!(polled, Poll::Ready(Ok(()))) || connection.is_over.get() {
            return polled.map(|_| ());
        }
        // hyper has reset a CONNECT that announces a body, and takes that for the end of everything. But the
        // WebSockets on the other streams may be those of others, behind a proxy.
        connection.was_used.set(true);
        reject(&connection.shard, &connection.handshake, Rejection::BadRequest);
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Serves `socket` until its client goes, or has had no WebSocket on it for too long, or a drain has
/// closed them all.
pub(super) async fn serve(reserved: Reservation, socket: Stream, accepted_at: Instant) {
    let (shard, handshake) = (Rc::clone(&reserved.shard), Rc::clone(&reserved.handshake));
    let connection = Rc::new(Connection {
        shard: Rc::clone(&shard),
        handshake: Rc::clone(&handshake),
        was_used: Cell::new(false),
        has_asked: Cell::new(false),
        siblings: Arc::default(),
        is_over: Cell::new(false),
        answered: RefCell::default(),
    });
    let socket = Socket { stream: socket, connection: Rc::clone(&connection) };
    let service = service_fn(|request| {
        let connection = Rc::clone(&connection);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let (window_bytes, pending_resets, error_resets) = if connection.is_of_proxy() {
        (PROXY_WINDOW_BYTES, MAX_PENDING_RESETS_OF_PROXY, None)
    } else {
        (CONNECTION_WINDOW_BYTES, MAX_PENDING_RESETS, Some(MAX_ERROR_RESETS))
    };
    let http = hyper::server::conn::http2::Builder::new(Tasks(Rc::clone(&connection)))
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(window_bytes)
        .max_send_buf_size(MAX_SEND_BYTES)
        .max_pending_accept_reset_streams(pending_resets)
        .max_local_error_reset_streams(error_resets)
        .serve_connection(TokioIo::new(socket), service);
    let mut http = pin!(http);
    let mut had_requests = false;
    let mut is_leaving = false;
    let ended = poll_fn(|cx| {
        let polled = poll_http(http.as_mut(), &connection, cx);
        had_requests |= connection.was_used.get();
        if polled.is_ready() {
            return polled;
        }
        // GOAWAY: whoever is told no or is drained has nothing more to do here.
        let is_unwanted =
            shard.stage.get() != Stage::Serving || handshake.is_refused() && had_requests;
        // A WebSocket on it was closed to be opened again elsewhere. The others on it go on.
        let is_unwelcome = connection.siblings.poll_unwelcome(cx).is_ready();
        let may_leave = is_unwanted && !connection.has_streams() || is_unwelcome;
        let mut leaves = may_leave && !is_leaving;
        if handshake.poll_expired(cx).is_ready() {
            // A request that was on its way to us when we said GOAWAY is answered like any other. Who is refused
            // and asks on gets no more time for it.
            let is_done = is_leaving && handshake.is_refused();
            if connection.has_streams() || connection.was_used.take() && !is_done {
                handshake.renew(shard.now() + shard.settings().idle_timeout, &shard);
                _ = handshake.poll_expired(cx);
            } else if is_leaving {
                return Poll::Ready(());
            } else {
                leaves = true;
            }
        }
        if leaves {
            is_leaving = true;
            connection.was_used.set(false);
            handshake.renew(shard.now() + shard.settings().close_timeout, &shard);
            _ = handshake.poll_expired(cx);
            http.as_mut().graceful_shutdown();
            return poll_http(http.as_mut(), &connection, cx);
        }
        Poll::Pending
    });
    ended.await;
    if !had_requests {
        let is_late = accepted_at.elapsed() >= shard.settings().handshake_timeout;
        let reason = if is_late { Rejection::Timeout } else { Rejection::Disconnected };
        reject(&shard, &handshake, reason);
    }
}
