//! What a socket goes through until it is a connection. [`proxied`] finds out who is at the other end, and
//! [`mod@check_in`] whether they may come in now. Then comes TLS where the listener speaks it, and HTTP
//! until the upgrade: hyper reads the request, [`answer`] judges and answers it, and [`opening`] makes a
//! connection of the socket and of whatever the client sent right behind the request. Where a client
//! speaks HTTP/2 that is for [`http2`], which makes many connections of one socket.

mod answer;
mod check_in;
pub(crate) mod http2;
mod opening;
mod proxied;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ProtocolVersion;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::admission::rate::Rate;
use crate::pubsub::ConnectionId;
use crate::shard::accept::Entrance;
use crate::shard::admitted::Shown;
use crate::shard::driver;
use crate::shard::handshake::answer::{Accepted, Outcome, Upgrade, answer};
use crate::shard::handshake::check_in::{CheckIn, ClientAddress, RefusedSeat};
use crate::shard::handshake::opening::{Opening, open};
use crate::shard::handshake::proxied::{Remote, RemoteError, Role};
use crate::shard::stream::Stream;
use crate::shard::stream::tls::Tls;
use crate::shard::{MAX_REFUSED, Shard};
use crate::telemetry::counters::{HTTP_1, Rejection};

/// Largest request head in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;

const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 51\r\n\r\n\
    the opening handshake did not end within its limit\n";

/// A socket in its opening handshake.
pub(crate) struct Handshake {
    pub(crate) id: ConnectionId,
    /// It will only be told why it cannot be served.
    refusal: Option<Rejection>,
    deadline: Cell<Instant>,
    has_expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Who is at the other end of the socket, once that is known.
    remote: Cell<Option<Remote>>,
    check_in: RefCell<CheckIn>,
}

impl Handshake {
    fn new(id: ConnectionId, refusal: Option<Rejection>, deadline: Instant) -> Self {
        Self {
            id,
            refusal,
            deadline: Cell::new(deadline),
            has_expired: Cell::new(false),
            waker: RefCell::new(None),
            remote: Cell::new(None),
            check_in: RefCell::default(),
        }
    }

    /// Whoever is at the other end of the socket is told no, whatever they ask for.
    fn is_refused(&self) -> bool {
        self.refusal_reason().is_some()
    }

    fn refusal_reason(&self) -> Option<Rejection> {
        match &*self.check_in.borrow() {
            CheckIn::Refused { why, .. } => Some(why.reason()),
            CheckIn::Later | CheckIn::In(..) => self.refusal,
        }
    }

    /// Where the client is, as far as that is known, for the log.
    fn address(&self) -> Shown {
        match &*self.check_in.borrow() {
            CheckIn::In(client, _) => Shown(client.address),
            CheckIn::Later | CheckIn::Refused { .. } => {
                Shown(self.remote.get().and_then(|remote| remote.address))
            }
        }
    }

    /// Has its task look again.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Gives it time until `deadline`.
    fn renew(&self, deadline: Instant, shard: &Shard) {
        self.has_expired.set(false);
        self.deadline.set(deadline);
        shard.enter_deadline(self.id, deadline);
    }

    /// The time for it is over at `now`, or it is asked too early: the wheel does not reach far. Then
    /// this returns the deadline, to be entered again.
    pub(crate) fn handle_timeout(&self, now: Instant) -> Option<Instant> {
        if now < self.deadline.get() {
            return Some(self.deadline.get());
        }
        self.has_expired.set(true);
        self.wake();
        None
    }

    fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_expired.get() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Finds out who is at the other end of `socket`, and whether they may come in where that is known
/// before their request.
///
/// # Errors
///
/// The socket is to be closed without a word, for this reason.
async fn check_in(
    shard: &Rc<Shard>,
    handshake: &Handshake,
    socket: &TcpStream,
) -> Result<(), Rejection> {
    let settings = shard.settings();
    let found = std::pin::pin!(proxied::remote(socket, &settings.admission));
    let remote = match in_time(handshake, found).await {
        None => return Err(Rejection::Timeout),
        Some(Ok(remote)) => remote,
        Some(Err(RemoteError::Gone)) => return Err(Rejection::Disconnected),
        Some(Err(RemoteError::Header(error))) => {
            let peer = Shown(socket.peer_addr().ok().map(|peer| peer.ip()));
            debug!(%peer, %error, "a trusted proxy does not say for whom it speaks");
            return Err(Rejection::ProxyProtocol);
        }
    };
    handshake.remote.set(Some(remote));
    // Of a proxy each request tells whose it is. Who is refused anyway is counted for nobody.
    if remote.role == Role::Proxy || handshake.refusal.is_some() {
        return Ok(());
    }
    let client = ClientAddress::of_socket(&remote);
    let entered = match client.try_enter(shard) {
        Ok(ticket) => CheckIn::In(client, ticket),
        Err(limited) => {
            let seat = RefusedSeat::take(shard).ok_or_else(|| limited.reason())?;
            CheckIn::Refused { why: limited, _seat: seat }
        }
    };
    handshake.check_in.replace(entered);
    Ok(())
}

/// To say no over TLS takes as much as to let somebody in. So many a second hear why from each shard; what
/// comes beyond is closed.
pub(super) fn tls_refusals() -> Rate {
    Rate::new(50, MAX_REFUSED as u32)
}

impl Shard {
    /// Counts one more to whom it is said over TLS why they may not come in, if there may be one.
    fn try_refuse_over_tls(&self) -> bool {
        let mut bucket = self.tls_refusals.get();
        let may = bucket.try_take(tls_refusals(), Instant::now()).is_ok();
        self.tls_refusals.set(bucket);
        may
    }
}

/// Counts a socket of which no connection comes, and says so to whoever reads the log for details.
fn reject(shard: &Shard, handshake: &Handshake, reason: Rejection) {
    shard.counters.connections_rejected[reason as usize].increment();
    let address = handshake.address();
    debug!(%address, reason = Rejection::LABELS[reason as usize], "handshake refused");
}

/// Gives the slot back where no connection comes of it.
struct Reservation {
    shard: Rc<Shard>,
    handshake: Rc<Handshake>,
    is_kept: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_kept {
            self.shard.leave(self.handshake.id);
            uncount(&self.shard, self.handshake.refusal);
        }
    }
}

/// Serves `socket`, which another thread has accepted and counted for this shard.
pub(crate) fn begin_handed_over(
    shard: &Rc<Shard>,
    socket: StdTcpStream,
    entrance: Entrance,
    accepted_at: Instant,
) {
    match TcpStream::from_std(socket) {
        Ok(socket) => begin(shard, socket, entrance, accepted_at, None),
        Err(error) => {
            debug!(%error, "a new socket cannot be watched");
            shard.counters.connections_rejected[Rejection::Disconnected as usize].increment();
            uncount(shard, None);
        }
    }
}

/// Serves `socket`, which is counted for this shard, until it is a connection or is told why not.
pub(crate) fn begin(
    shard: &Rc<Shard>,
    socket: TcpStream,
    entrance: Entrance,
    accepted_at: Instant,
    refusal: Option<Rejection>,
) {
    let Some(reserved) = reserve(shard, accepted_at, refusal) else {
        return;
    };
    let id = reserved.handshake.id;
    let serving = serve(reserved, socket, entrance, accepted_at);
    tokio::task::spawn_local(caught(Rc::clone(shard), id, serving));
}

/// Takes a slot for what is counted for this shard already, and its time from `accepted_at` on. `None`
/// where there is none; then it is not counted any more.
fn reserve(
    shard: &Rc<Shard>,
    accepted_at: Instant,
    refusal: Option<Rejection>,
) -> Option<Reservation> {
    let deadline = accepted_at + shard.settings().handshake_timeout;
    let handshake =
        shard.table.borrow_mut().insert(|id| Rc::new(Handshake::new(id, refusal, deadline)));
    let Some(handshake) = handshake else {
        shard.counters.connections_rejected[Rejection::Overload as usize].increment();
        uncount(shard, refusal);
        return None;
    };
    shard.enter_deadline(handshake.id, deadline);
    Some(Reservation { shard: Rc::clone(shard), handshake, is_kept: false })
}

/// Undoes the counting of a socket of which no connection comes.
fn uncount(shard: &Shard, refusal: Option<Rejection>) {
    match refusal {
        Some(_) => shard.refused.set(shard.refused.get() - 1),
        None => shard.loads.leave(shard.id),
    }
}

/// Runs `handshake`. A bug in it ends that socket and no other.
async fn caught(shard: Rc<Shard>, id: ConnectionId, handshake: impl Future<Output = ()>) {
    let mut handshake = std::pin::pin!(handshake);
    let ended = poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| handshake.as_mut().poll(cx)));
        polled.map_or_else(|panic| Poll::Ready(Err(panic)), |poll| poll.map(Ok))
    });
    if let Err(panic) = ended.await {
        driver::report_panic(&id.to_uuid(shard.gateway), &*panic, &shard);
    }
}

async fn serve(
    mut reserved: Reservation,
    socket: TcpStream,
    entrance: Entrance,
    accepted_at: Instant,
) {
    let (shard, handshake) = (Rc::clone(&reserved.shard), Rc::clone(&reserved.handshake));
    if let Err(reason) = check_in(&shard, &handshake, &socket).await {
        return reject(&shard, &handshake, reason);
    }
    if let Some(reason) = handshake.refusal_reason()
        && entrance.tls.is_some()
        && !shard.try_refuse_over_tls()
    {
        return reject(&shard, &handshake, reason);
    }
    let socket = match encrypt(&shard, &handshake, socket, entrance).await {
        Ok((socket, Version::HTTP_2)) => {
            return http2::serve(reserved, socket, accepted_at).await;
        }
        Ok((socket, _)) => socket,
        Err(reason) => return reject(&shard, &handshake, reason),
    };
    let accepted: Rc<RefCell<Option<Accepted>>> = Rc::default();
    let rejection: Rc<Cell<Option<Rejection>>> = Rc::default();
    let has_page: Rc<Cell<bool>> = Rc::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        let (shard, handshake) = (Rc::clone(&shard), Rc::clone(&handshake));
        let (accepted, rejection) = (Rc::clone(&accepted), Rc::clone(&rejection));
        let has_page = Rc::clone(&has_page);
        async move {
            let answer = match answer(&shard, &handshake, &mut request).await {
                Ok(Outcome::Connection(response, answered)) => {
                    accepted.replace(Some(answered));
                    response
                }
                Ok(Outcome::Page(page)) => {
                    has_page.set(true);
                    page
                }
                Err(refused) => {
                    rejection.set(Some(refused.reason()));
                    refused.response()
                }
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(socket), service);
    let mut http = http.with_upgrades();
    let ended = in_time(&handshake, Pin::new(&mut http)).await;
    let Some(Accepted { upgrade, target, coding, subscriptions, identity }) = accepted.take()
    else {
        if has_page.get() {
            // However much of it the client took, it has had its answer.
            shard.counters.console_requests.increment();
            return;
        }
        let reason = rejection.get().unwrap_or(match &ended {
            None => Rejection::Timeout,
            Some(Err(error)) if error.is_parse_too_large() => Rejection::TooLarge,
            Some(Err(error)) if error.is_parse() => Rejection::BadRequest,
            Some(Err(_) | Ok(())) => Rejection::Disconnected,
        });
        reject(&shard, &handshake, reason);
        if ended.is_none()
            && rejection.get().is_none()
            && let Some(parts) = http.into_parts()
        {
            // One attempt: the peer is slow, and who does not take 200 bytes gets none.
            let mut socket = parts.io.into_inner();
            _ = socket.try_write(TIMED_OUT);
            socket.say_end();
        }
        return;
    };
    // The 101 was written in the same poll that ended the loop above, and this future is ready with
    // it, so nothing happens on this shard between the answer and the connection that it promised.
    let upgraded = match (ended, upgrade) {
        (Some(Ok(())), Upgrade::Http1(upgrade)) => upgrade.await.ok(),
        (Some(Err(_)) | None, _) | (_, Upgrade::Http2(_)) => None,
    };
    let parts = upgraded
        .and_then(|upgraded| upgraded.into_inner().into_inner().downcast::<TokioIo<Stream>>().ok());
    let Some(parts) = parts else {
        return reject(&shard, &handshake, Rejection::Disconnected);
    };
    reserved.is_kept = true;
    shard.counters.handshakes[HTTP_1].increment();
    shard.counters.handshake_duration.record(accepted_at.elapsed());
    let opening = Opening {
        id: handshake.id,
        check_in: handshake.check_in.take(),
        socket: parts.io.into_inner(),
        early: parts.read_buf,
        target,
        coding,
        subscriptions,
        identity,
    };
    open(&shard, opening);
}

/// Has TLS begin where `entrance` speaks it, and finds out which HTTP the client speaks.
///
/// # Errors
///
/// Why no connection can come of it.
async fn encrypt(
    shard: &Shard,
    handshake: &Handshake,
    socket: TcpStream,
    entrance: Entrance,
) -> Result<(Stream, Version), Rejection> {
    let Some(identity) = entrance.tls else {
        let version = if entrance.http2_by_prior_knowledge {
            let version = http2::first_version(&socket);
            in_time(handshake, std::pin::pin!(version)).await.ok_or(Rejection::Timeout)?
        } else {
            Version::HTTP_11
        };
        return Ok((Stream::Plain(socket), version));
    };
    let mut accepting = TlsAcceptor::from(identity.current()).accept(socket).into_fallible();
    match in_time(handshake, Pin::new(&mut accepting)).await {
        Some(Ok(stream)) => {
            let (socket, session) = stream.into_inner();
            let version = tls_version_index(session.protocol_version());
            shard.counters.tls_handshakes[version].increment();
            let is_http2 = session.alpn_protocol() == Some(b"h2");
            let http = if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
            Ok((Stream::Tls(Box::new(Tls::new(socket, session))), http))
        }
        // Nobody has said anything wrong.
        Some(Err((error, _))) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Rejection::Disconnected)
        }
        Some(Err((error, _))) => {
            debug!(%error, "a TLS handshake failed");
            Err(Rejection::Tls)
        }
        None => Err(Rejection::Timeout),
    }
}

fn tls_version_index(version: Option<ProtocolVersion>) -> usize {
    match version {
        Some(ProtocolVersion::TLSv1_2) => 0,
        // There is no third.
        _ => 1,
    }
}

/// What `work` comes to within the time of `handshake`.
async fn in_time<F: Future + ?Sized>(
    handshake: &Handshake,
    mut work: Pin<&mut F>,
) -> Option<F::Output> {
    let ended = poll_fn(|cx| {
        if handshake.poll_expired(cx).is_ready() {
            return Poll::Ready(None);
        }
        work.as_mut().poll(cx).map(Some)
    });
    let ended = ended.await;
    if ended.is_some() {
        return ended;
    }
    // A shard that was late hears of the deadline before it hears of its sockets: one look at what came
    // in time.
    tokio::task::yield_now().await;
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pubsub::ShardId;

    #[test]
    fn handshake_that_is_asked_before_its_deadline_wants_to_be_asked_again() {
        let start = Instant::now();
        let deadline = start + Duration::from_secs(70);
        let id = ConnectionId { shard: ShardId::new(0), slot: 0, generation: 0 };
        let handshake = Handshake::new(id, None, deadline);
        // The wheel reaches 51 s.
        assert_eq!(handshake.handle_timeout(start + Duration::from_secs(51)), Some(deadline));
        assert!(!handshake.has_expired.get());
        assert_eq!(handshake.handle_timeout(deadline), None);
        assert!(handshake.has_expired.get());
    }

    #[test]
    fn answer_to_a_slow_handshake_has_the_length_that_it_says() {
        let text = std::str::from_utf8(TIMED_OUT).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }
}
