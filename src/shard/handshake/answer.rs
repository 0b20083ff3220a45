//! What is a request answered with? `wire::handshake`, `protocol` and `auth` judge it, fastwebsockets answers
//! it, and its subscriptions are announced before the answer. One that asks for no WebSocket may be for the
//! console page.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fastwebsockets::upgrade::UpgradeFut;
use http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL, WWW_AUTHENTICATE,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use crate::auth::access::{AccessError, Entrant};
use crate::auth::bearer::BEARER;
use crate::auth::identity::{Identity, SubscribeGrant, UnixSeconds};
use crate::broker::Broker;
use crate::console;
use crate::hub::{Group, SubscriptionKey};
use crate::protocol::target::{Endpoint, Target, TargetError};
use crate::pubsub::ChannelName;
use crate::shard::Shard;
use crate::shard::client::{Channel, Subscriptions};
use crate::shard::compression::Coding;
use crate::shard::drain::Stage;
use crate::shard::handshake::Handshake;
use crate::shard::handshake::check_in::{CheckIn, ClientAddress, Limited};
use crate::telemetry::counters::Rejection;
use crate::wire::extensions;
use crate::wire::handshake::{self as rules, HandshakeError};

/// Tells the client the id of its connection.
const X_CONNECTION_ID: HeaderName = HeaderName::from_static("x-connection-id");

/// An answer of either kind.
pub(super) type Answer = Response<Full<Bytes>>;

/// Subscriptions that were announced before their connection is open.
pub(super) struct Announced {
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

    async fn subscribe(&mut self, slot: u32, grant: SubscribeGrant, group: Group) {
        let (shard, name) = (&self.shard, grant.channel());
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
    pub(super) fn take(mut self) -> (Option<Channel>, Subscriptions) {
        (self.channel, Subscriptions::new(std::mem::take(&mut self.keys)))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.keys.drain(..).for_each(|key| self.shard.unsubscribe(key));
    }
}

/// What the bytes behind an answer come through.
pub(super) enum Upgrade {
    Http1(UpgradeFut),
    Http2(OnUpgrade),
}

/// A request that was answered with 101, or over HTTP/2 with 200.
pub(super) struct Accepted {
    pub(super) upgrade: Upgrade,
    pub(super) target: Target,
    pub(super) coding: Rc<Coding>,
    pub(super) subscriptions: Announced,
    pub(super) identity: Arc<Identity>,
}

/// What becomes of a request that is not refused.
pub(super) enum Outcome {
    /// A connection, once this answer is written.
    Connection(Answer, Accepted),
    /// The console page, and nothing else.
    Page(Answer),
}

/// Why a request is not answered with 101.
pub(super) enum Refusal {
    ConsoleMethod,
    Target(TargetError),
    Handshake(HandshakeError),
    Origin,
    Access(AccessError),
    /// The data is the channel.
    Channel(ChannelName),
    Full,
    Draining,
    Limited(Limited),
}

/// Judges `request` and makes the answer to it.
pub(super) async fn answer(
    shard: &Rc<Shard>,
    handshake: &Handshake,
    request: &mut Request<Incoming>,
) -> Result<Outcome, Refusal> {
    if handshake.refusal.is_some() {
        return Err(Refusal::Full);
    }
    if shard.stage.get() == Stage::Refusing {
        return Err(Refusal::Draining);
    }
    check_in(shard, handshake, request.headers()).map_err(Refusal::Limited)?;
    if shard.settings().console && request.uri().path() == console::PATH && !is_upgrade(request) {
        return page(request).map(Outcome::Page);
    }
    let target =
        Target::parse(request.uri().path(), request.uri().query()).map_err(Refusal::Target)?;
    target.check_channels(shard.settings().max_channels_per_connection).map_err(Refusal::Target)?;
    let is_http2 = request.version() == Version::HTTP_2;
    let checked = if is_http2 {
        let protocol = request.extensions().get::<Protocol>().map(Protocol::as_str);
        rules::check_http2(request.method(), protocol, request.headers())
    } else {
        rules::check(request.method(), request.version(), request.headers())
    };
    checked.map_err(Refusal::Handshake)?;
    let headers = request.headers();
    let text =
        |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    // A target in absolute form names the host itself, and then `Host` is to be ignored (RFC 9112
    // section 3.2.2).
    let host = request.uri().authority().map(Authority::as_str).or_else(|| text(HOST));
    // Of two origins the page's own cannot be told.
    let origins = headers.get_all(ORIGIN).iter().count();
    if origins > 1 || !shard.settings().allowed_origins.allows(text(ORIGIN), host) {
        return Err(Refusal::Origin);
    }
    let now = UnixSeconds::at(SystemTime::now());
    let judged = shard.settings().access.judge(headers, request.uri().query(), now);
    let Entrant { identity, by_subprotocol } = judged.map_err(|error| {
        if let AccessError::Token(error) = &error {
            shard.counters.token_rejections[error.index()].increment();
        }
        Refusal::Access(error)
    })?;
    let grants = grants(&identity, &target)?;
    let (agreement, memory) =
        shard.negotiate_deflate(|readiness| extensions::negotiate(headers, readiness));
    let coding = shard.codec.coding(agreement, memory);
    let (mut response, upgrade) = if is_http2 {
        (Response::default(), Upgrade::Http2(hyper::upgrade::on(&mut *request)))
    } else {
        let (response, upgrade) = fastwebsockets::upgrade::upgrade(&mut *request)
            .map_err(|_| Refusal::Handshake(HandshakeError::KeyMissing))?;
        (response.map(|_| Full::default()), Upgrade::Http1(upgrade))
    };
    let id = HeaderValue::try_from(handshake.id.to_uuid(shard.gateway));
    response.headers_mut().insert(X_CONNECTION_ID, id.expect("hexadecimal digits and hyphens"));
    if let Some(agreement) = agreement {
        let value = HeaderValue::try_from(agreement.to_string()).expect("words and numbers");
        response.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, value);
    }
    if by_subprotocol {
        let bearer = HeaderValue::from_static(BEARER);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, bearer);
    }
    let mut subscriptions = Announced::new(shard);
    let group = coding.group(target.also.is_empty());
    // Announced before the answer, so that whoever has the answer is sure to be known.
    for grant in grants {
        subscriptions.subscribe(handshake.id.slot, grant, group).await;
    }
    let accepted = Accepted { upgrade, target, coding, subscriptions, identity };
    Ok(Outcome::Connection(response, accepted))
}

/// Leave to subscribe to every channel that `target` names, that of the path first.
fn grants(identity: &Identity, target: &Target) -> Result<Vec<SubscribeGrant>, Refusal> {
    let Endpoint::Channel { name, .. } = &target.endpoint else {
        return Ok(Vec::new());
    };
    let names = std::iter::once(name).chain(&target.also);
    let grant = |name: &ChannelName| {
        identity.may_subscribe(name).ok_or_else(|| Refusal::Channel(name.clone()))
    };
    names.map(grant).collect()
}

/// Finds out whose a request is that a proxy brings, and whether they may come in now.
fn check_in(shard: &Shard, handshake: &Handshake, headers: &HeaderMap) -> Result<(), Limited> {
    let mut check_in = handshake.check_in.borrow_mut();
    match &*check_in {
        CheckIn::In(..) => Ok(()),
        CheckIn::Refused { why, .. } => Err(*why),
        CheckIn::Later => {
            let client = handshake.remote.get().map(|remote| {
                ClientAddress::of_request(&remote, headers, &shard.settings().admission)
            });
            let client = client.unwrap_or_default();
            let ticket = client.try_enter(shard);
            // Whose it is also matters to the log where it is refused.
            *check_in = CheckIn::In(client, None);
            *check_in = CheckIn::In(client, ticket?);
            Ok(())
        }
    }
}

/// Whether `request` asks for a WebSocket, well or not.
fn is_upgrade(request: &Request<Incoming>) -> bool {
    request.extensions().get::<Protocol>().is_some() || rules::is_upgrade(request.headers())
}

/// The answer to a request for the console page.
fn page(request: &Request<Incoming>) -> Result<Answer, Refusal> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Err(Refusal::ConsoleMethod);
    }
    // Before HTTP/1.1 there was no such header, and after it the target names the host.
    if request.version() == Version::HTTP_11 {
        rules::check_host(request.headers()).map_err(Refusal::Handshake)?;
    }
    let mut page = console::response();
    if request.version() != Version::HTTP_2 {
        page.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(page)
}

impl Refusal {
    pub(super) fn reason(&self) -> Rejection {
        match self {
            Self::Target(TargetError::NotFound) => Rejection::NotFound,
            Self::Target(
                TargetError::ChannelName(_)
                | TargetError::ChannelNameEncoding
                | TargetError::NotABoolean { .. }
                | TargetError::TooManyChannels { .. },
            ) => Rejection::BadRequest,
            Self::ConsoleMethod | Self::Handshake(HandshakeError::Method) => Rejection::Method,
            Self::Handshake(HandshakeError::ProtocolVersion) => Rejection::Version,
            Self::Handshake(
                HandshakeError::HttpVersion
                | HandshakeError::Host
                | HandshakeError::Upgrade
                | HandshakeError::Connection
                | HandshakeError::KeyMissing
                | HandshakeError::KeyMalformed
                | HandshakeError::Body
                | HandshakeError::ExtendedConnect
                | HandshakeError::Protocol,
            ) => Rejection::BadRequest,
            Self::Origin => Rejection::Origin,
            Self::Access(AccessError::Presentation(_)) => Rejection::BadRequest,
            Self::Access(AccessError::NoToken | AccessError::Token(_)) => Rejection::Unauthorized,
            Self::Channel(_) => Rejection::Forbidden,
            Self::Full => Rejection::Full,
            Self::Draining => Rejection::Draining,
            Self::Limited(limited) => limited.reason(),
        }
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut headers = HeaderMap::new();
        let (status, text) = match self {
            Self::ConsoleMethod => {
                headers.insert(ALLOW, HeaderValue::from_static(console::METHODS));
                (StatusCode::METHOD_NOT_ALLOWED, "this is a page, to be read".to_owned())
            }
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
            Self::Handshake(error @ HandshakeError::Protocol) => {
                (StatusCode::NOT_IMPLEMENTED, error.to_string())
            }
            Self::Handshake(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Origin => {
                let text = "pages of this origin may not connect; the operator can allow it with \
                            allowed_origins";
                (StatusCode::FORBIDDEN, text.to_owned())
            }
            Self::Access(error) => {
                // RFC 6750 section 3.1; without a token there is no error to name.
                let (status, code) = match error {
                    AccessError::NoToken => (StatusCode::UNAUTHORIZED, None),
                    AccessError::Token(_) => (StatusCode::UNAUTHORIZED, Some("invalid_token")),
                    AccessError::Presentation(_) => {
                        (StatusCode::BAD_REQUEST, Some("invalid_request"))
                    }
                };
                headers.insert(WWW_AUTHENTICATE, challenge(code));
                (status, error.to_string())
            }
            Self::Channel(name) => {
                headers.insert(WWW_AUTHENTICATE, challenge(Some("insufficient_scope")));
                let text = format!("this connection may not subscribe to the channel {name}");
                (StatusCode::FORBIDDEN, text)
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
            Self::Limited(limited) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(limited.retry_after()));
                (StatusCode::TOO_MANY_REQUESTS, limited.text().to_owned())
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

/// What kind of token is wanted, and what is wrong with the one that came.
fn challenge(error: Option<&'static str>) -> HeaderValue {
    let challenge = match error {
        None => "Bearer realm=\"wsgate\"".to_owned(),
        Some(error) => format!("Bearer realm=\"wsgate\", error=\"{error}\""),
    };
    HeaderValue::try_from(challenge).expect("visible ASCII")
}
