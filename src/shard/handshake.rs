//! HTTP until the upgrade: hyper reads the request, `wire::handshake` and `protocol` judge it,
//! fastwebsockets answers it, and the socket goes to its driver with whatever the client sent right
//! behind the request.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::TcpStream as StdTcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use fastwebsockets::upgrade::UpgradeFut;
use http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_EXTENSIONS,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use crate::broker::Broker;
use crate::hub::{Group, SubscriptionKey};
use crate::protocol::raw;
use crate::protocol::target::{Endpoint, Target, TargetError};
use crate::pubsub::{ChannelName, ConnectionId};
use crate::shard::Shard;
use crate::shard::client::{Channel, Client, Subscriptions};
use crate::shard::compression::Coding;
use crate::shard::driver::{self, Driver};
use crate::telemetry::counters::{Rejection, TEXT};
use crate::wire::close::CloseCode;
use crate::wire::decoder::MAX_KEPT_BYTES;
use crate::wire::extensions;
use crate::wire::handshake::{self as rules, HandshakeError};

/// Largest request head in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// Tells the client the id of its connection.
const X_CONNECTION_ID: HeaderName = HeaderName::from_static("x-connection-id");

const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 51\r\n\r\n\
    the opening handshake did not end within its limit\n";

type Response101 = Response<Full<Bytes>>;

/// A socket in its opening handshake.
pub(crate) struct Handshake {
    pub(crate) id: ConnectionId,
    /// It will only be told why it cannot be served.
    refusal: Option<Rejection>,
    deadline: Instant,
    has_expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Handshake {
    /// The time for it is over at `now`, or it is asked too early: the wheel does not reach far. Then
    /// this returns the deadline, to be entered again.
    pub(crate) fn handle_timeout(&self, now: Instant) -> Option<Instant> {
        if now < self.deadline {
            return Some(self.deadline);
        }
        self.has_expired.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
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

/// Subscriptions that were announced before their connection is open.
struct Announced {
    shard: Rc<Shard>,
    /// The first of them is to the channel that the connection publishes to.
    keys: Vec<SubscriptionKey>,
    channel: Option<Channel>,
}

impl Announced {
    /// Nothing yet.
    fn new(shard: &Rc<Shard>) -> Self {
        Self { shard: Rc::clone(shard), keys: Vec::new(), channel: None }
    }

    async fn subscribe(&mut self, slot: u32, name: &ChannelName, group: Group) {
        let shard = &self.shard;
        let permit = shard.broker.permit(name).await;
        let subscribed = shard.hub.borrow_mut().subscribe(slot, name, group);
        self.keys.push(subscribed.key);
        shard.counters.subscriptions.moved(0, 1);
        if subscribed.is_first {
            shard.broker.subscribe(name, permit);
        }
        self.channel.get_or_insert_with(|| Channel {
            key: subscribed.channel,
            home: shard.broker.home(name),
        });
    }

    /// Hands them over to the connection, which is open now.
    fn take(mut self) -> (Option<Channel>, Subscriptions) {
        (self.channel, Subscriptions::new(std::mem::take(&mut self.keys)))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.keys.drain(..).for_each(|key| self.shard.unsubscribe(key));
    }
}

/// A request that was answered with 101.
struct Accepted {
    upgrade: UpgradeFut,
    target: Target,
    coding: Rc<Coding>,
    subscriptions: Announced,
}

/// Serves `socket`, which another thread has accepted and counted for this shard.
pub(crate) fn begin_handed_over(shard: &Rc<Shard>, socket: StdTcpStream, accepted_at: Instant) {
    match TcpStream::from_std(socket) {
        Ok(socket) => begin(shard, socket, accepted_at, None),
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
    accepted_at: Instant,
    refusal: Option<Rejection>,
) {
    let deadline = accepted_at + shard.settings.handshake_timeout;
    let handshake = shard.table.borrow_mut().insert(|id| {
        let (has_expired, waker) = (Cell::new(false), RefCell::new(None));
        Rc::new(Handshake { id, refusal, deadline, has_expired, waker })
    });
    let Some(handshake) = handshake else {
        shard.counters.connections_rejected[Rejection::Overload as usize].increment();
        uncount(shard, refusal);
        return;
    };
    shard.enter_deadline(handshake.id, deadline);
    let id = handshake.id;
    let reserved = Reservation { shard: Rc::clone(shard), handshake, is_kept: false };
    tokio::task::spawn_local(caught(Rc::clone(shard), id, serve(reserved, socket, accepted_at)));
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

async fn serve(mut reserved: Reservation, socket: TcpStream, accepted_at: Instant) {
    let (shard, handshake) = (Rc::clone(&reserved.shard), Rc::clone(&reserved.handshake));
    let accepted: Rc<RefCell<Option<Accepted>>> = Rc::default();
    let rejection: Rc<Cell<Option<Rejection>>> = Rc::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        let (shard, handshake) = (Rc::clone(&shard), Rc::clone(&handshake));
        let (accepted, rejection) = (Rc::clone(&accepted), Rc::clone(&rejection));
        async move {
            let answer = match answer(&shard, &handshake, &mut request).await {
                Ok((response, answered)) => {
                    accepted.replace(Some(answered));
                    response
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
    let ended = poll_fn(|cx| {
        if handshake.poll_expired(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut http).poll(cx).map(Some)
    });
    let mut ended = ended.await;
    if ended.is_none() {
        // A shard that was late hears of the deadline before it hears of its sockets: one look at what
        // came in time.
        tokio::task::yield_now().await;
        let look = poll_fn(|cx| match Pin::new(&mut http).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => Poll::Ready(None),
        });
        ended = look.await;
    }
    let Some(Accepted { upgrade, target, coding, subscriptions }) = accepted.take() else {
        let reason = rejection.get().unwrap_or(match &ended {
            None => Rejection::Timeout,
            Some(Err(error)) if error.is_parse_too_large() => Rejection::TooLarge,
            Some(Err(error)) if error.is_parse() => Rejection::BadRequest,
            Some(Err(_) | Ok(())) => Rejection::Disconnected,
        });
        shard.counters.connections_rejected[reason as usize].increment();
        if ended.is_none()
            && rejection.get().is_none()
            && let Some(parts) = http.into_parts()
        {
            // One attempt: the peer is slow, and who does not take 200 bytes gets none.
            _ = parts.io.inner().try_write(TIMED_OUT);
        }
        return;
    };
    // The 101 was written in the same poll that ended the loop above, and this future is ready with
    // it, so nothing happens on this shard between the answer and the connection that it promised.
    let upgraded = match ended {
        Some(Ok(())) => upgrade.await.ok(),
        Some(Err(_)) | None => None,
    };
    let parts = upgraded.and_then(|upgraded| {
        upgraded.into_inner().into_inner().downcast::<TokioIo<TcpStream>>().ok()
    });
    let Some(parts) = parts else {
        shard.counters.connections_rejected[Rejection::Disconnected as usize].increment();
        return;
    };
    reserved.is_kept = true;
    shard.counters.handshake_duration.record(accepted_at.elapsed());
    let opening = Opening {
        id: handshake.id,
        socket: parts.io.into_inner(),
        early: parts.read_buf,
        target,
        coding,
        subscriptions,
    };
    open(&shard, opening);
}

/// What a connection begins with.
struct Opening {
    id: ConnectionId,
    socket: TcpStream,
    /// Came right behind the request.
    early: Bytes,
    target: Target,
    coding: Rc<Coding>,
    subscriptions: Announced,
}

fn open(shard: &Rc<Shard>, opening: Opening) {
    let Opening { id, socket, early, target, coding, subscriptions } = opening;
    let now = shard.now();
    let (channel, subscriptions) = subscriptions.take();
    let ask = raw::ask(&target.endpoint);
    let client = Client::new(id, ask, channel, subscriptions, coding, socket, now);
    let client = Rc::new(client);
    shard.counters.connections.moved(0, 1);
    if let Some(mode) = client.coding.mode() {
        shard.counters.compressed_connections[mode].moved(0, 1);
    }
    shard.table.borrow_mut().open(Rc::clone(&client));
    // From here on its driver's end is the connection's end, also if what follows should panic.
    let driver = Driver::new(Rc::clone(&client), Rc::clone(shard));
    debug!(connection = %id.to_uuid(shard.gateway), endpoint = ?target.endpoint, "connection opened");
    shard.guard(&client, || {
        let mut connection = client.hold(shard);
        if target.hello {
            shard.counters.messages_sent[TEXT].increment();
            client.send(&mut connection, &raw::hello(&id.to_uuid(shard.gateway)), shard);
        }
        if !early.is_empty() {
            let buffer = &mut *shard.read_buffer.borrow_mut();
            buffer[MAX_KEPT_BYTES..MAX_KEPT_BYTES + early.len()].copy_from_slice(&early);
            shard.counters.received_bytes.add(early.len() as u64);
            driver::process(&client, &mut connection, shard, buffer, early.len(), now);
        }
        if shard.is_closing.get() {
            let reason = "the gateway is draining";
            connection.close(now, CloseCode::GOING_AWAY, reason, &shard.timing);
        }
        shard.arm(&client, &connection);
    });
    tokio::task::spawn_local(driver);
}

/// Why a request is not answered with 101.
enum Refusal {
    Target(TargetError),
    Handshake(HandshakeError),
    Origin,
    Full,
    Draining,
}

async fn answer(
    shard: &Rc<Shard>,
    handshake: &Handshake,
    request: &mut Request<Incoming>,
) -> Result<(Response101, Accepted), Refusal> {
    if handshake.refusal.is_some() {
        return Err(Refusal::Full);
    }
    if shard.is_closing.get() {
        return Err(Refusal::Draining);
    }
    let target =
        Target::parse(request.uri().path(), request.uri().query()).map_err(Refusal::Target)?;
    target.check_channels(shard.settings.max_channels_per_connection).map_err(Refusal::Target)?;
    rules::check(request.method(), request.version(), request.headers())
        .map_err(Refusal::Handshake)?;
    let headers = request.headers();
    let text =
        |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    // A target in absolute form names the host itself, and then `Host` is to be ignored (RFC 9112
    // section 3.2.2).
    let host = request.uri().authority().map(Authority::as_str).or_else(|| text(HOST));
    // Of two origins the page's own cannot be told.
    let origins = headers.get_all(ORIGIN).iter().count();
    if origins > 1 || !shard.settings.allowed_origins.allows(text(ORIGIN), host) {
        return Err(Refusal::Origin);
    }
    let (agreement, memory) =
        shard.negotiate_deflate(|readiness| extensions::negotiate(headers, readiness));
    let coding = shard.codec.coding(agreement, memory);
    let (response, upgrade) = fastwebsockets::upgrade::upgrade(&mut *request)
        .map_err(|_| Refusal::Handshake(HandshakeError::KeyMissing))?;
    let mut response = response.map(|_| Full::default());
    let id = HeaderValue::try_from(handshake.id.to_uuid(shard.gateway));
    response.headers_mut().insert(X_CONNECTION_ID, id.expect("hexadecimal digits and hyphens"));
    if let Some(agreement) = agreement {
        let value = HeaderValue::try_from(agreement.to_string()).expect("words and numbers");
        response.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, value);
    }
    let mut subscriptions = Announced::new(shard);
    if let Endpoint::Channel { name, .. } = &target.endpoint {
        let group = coding.group(target.also.is_empty());
        // Announced before the answer, so that whoever has the answer is sure to be known.
        for name in std::iter::once(name).chain(&target.also) {
            subscriptions.subscribe(handshake.id.slot, name, group).await;
        }
    }
    Ok((response, Accepted { upgrade, target, coding, subscriptions }))
}

impl Refusal {
    fn reason(&self) -> Rejection {
        match self {
            Self::Target(TargetError::NotFound) => Rejection::NotFound,
            Self::Target(
                TargetError::ChannelName(_)
                | TargetError::ChannelNameEncoding
                | TargetError::NotABoolean { .. }
                | TargetError::TooManyChannels { .. },
            ) => Rejection::BadRequest,
            Self::Handshake(HandshakeError::Method) => Rejection::Method,
            Self::Handshake(HandshakeError::ProtocolVersion) => Rejection::Version,
            Self::Handshake(
                HandshakeError::HttpVersion
                | HandshakeError::Host
                | HandshakeError::Upgrade
                | HandshakeError::Connection
                | HandshakeError::KeyMissing
                | HandshakeError::KeyMalformed
                | HandshakeError::Body,
            ) => Rejection::BadRequest,
            Self::Origin => Rejection::Origin,
            Self::Full => Rejection::Full,
            Self::Draining => Rejection::Draining,
        }
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let mut headers = HeaderMap::new();
        let (status, text) = match self {
            Self::Target(error @ TargetError::NotFound) => {
                (StatusCode::NOT_FOUND, error.to_string())
            }
            Self::Target(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Handshake(error @ HandshakeError::Method) => {
                headers.insert(ALLOW, HeaderValue::from_static("GET"));
                (StatusCode::METHOD_NOT_ALLOWED, error.to_string())
            }
            Self::Handshake(error @ HandshakeError::ProtocolVersion) => {
                let version = HeaderValue::from_static("13");
                headers.insert(http::header::SEC_WEBSOCKET_VERSION, version);
                (StatusCode::UPGRADE_REQUIRED, error.to_string())
            }
            Self::Handshake(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Origin => {
                let text = "pages of this origin may not connect; the operator can allow it with \
                            allowed_origins";
                (StatusCode::FORBIDDEN, text.to_owned())
            }
            Self::Full => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
                let text = "this gateway has as many connections as it takes; try again later";
                (StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
            }
            Self::Draining => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
                let text = "this gateway is going away; try again, and reach another one";
                (StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
            }
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut response = Response::new(Full::from(text + "\n"));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
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
        let handshake = Handshake {
            id: ConnectionId { shard: ShardId::new(0), slot: 0, generation: 0 },
            refusal: None,
            deadline,
            has_expired: Cell::new(false),
            waker: RefCell::new(None),
        };
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
