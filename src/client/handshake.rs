//! From an endpoint to an open connection: socket, TLS, and the opening handshake by hyper, which
//! unlike the handshake of fastwebsockets hands on what a refusal says.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, ORIGIN,
    RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tungstenite::handshake::{client::generate_key, derive_accept_key};

use crate::client::ending::{Ending, Transport};
use crate::client::endpoint::{Endpoint, Place};
use crate::client::offer::{self, Agreed};

/// Time for all of it, from the look-up of the name to the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a refusal's body that are read.
const MAX_BODY_BYTES: usize = 4096;
/// Most characters of it that are shown.
const MAX_TOLD_CHARACTERS: usize = 200;
/// Time for the body of a refusal.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// What the request says beside what the protocol demands.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// In the order given; `Host` and `User-Agent` replace our own.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Subprotocols, the most wanted first.
    pub subprotocols: Vec<String>,
    /// Sent as a bearer token. Marked as sensitive.
    pub bearer: Option<HeaderValue>,
    /// As which origin's page to connect.
    pub origin: Option<HeaderValue>,
    /// Offer permessage-deflate.
    pub compression: bool,
}

/// Headers that are the handshake's own, or have a flag of their own.
pub const OWN_HEADERS: [HeaderName; 8] = [
    CONNECTION,
    UPGRADE,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL,
    http::header::CONTENT_LENGTH,
    http::header::TRANSFER_ENCODING,
];

/// A connection whose handshake is over.
pub(super) struct Opened {
    pub(super) socket: TokioIo<Upgraded>,
    pub(super) agreed: Option<Agreed>,
    pub(super) subprotocol: Option<String>,
}

/// Connects. `tls` is how TLS is spoken; the endpoint wants it if it is there.
pub(super) async fn open(
    endpoint: &Endpoint,
    wishes: &Wishes,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Opened, Ending> {
    let opening = async {
        match &endpoint.place {
            Place::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(Ending::Unreachable)?;
                upgrade(endpoint, wishes, Transport::Unix, socket).await
            }
            Place::Tcp { host, port } => {
                let socket = TcpStream::connect((host.as_str(), *port)).await;
                let socket = socket.map_err(Ending::Unreachable)?;
                socket.set_nodelay(true).map_err(Ending::Unreachable)?;
                let Some(tls) = tls else {
                    return upgrade(endpoint, wishes, Transport::Tcp, socket).await;
                };
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| Ending::Unreachable(io::Error::other(error)))?;
                let connector = TlsConnector::from(Arc::clone(tls));
                let socket = connector.connect(name, socket).await.map_err(Ending::connecting)?;
                upgrade(endpoint, wishes, Transport::Tls, socket).await
            }
        }
    };
    tokio::time::timeout(TIMEOUT, opening).await.unwrap_or(Err(Ending::Slow(TIMEOUT)))
}

async fn upgrade(
    endpoint: &Endpoint,
    wishes: &Wishes,
    transport: Transport,
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Opened, Ending> {
    let no_http = |error| Ending::asking(error, transport);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(no_http)?;
    // It ends with the connection, or when the sender is dropped.
    tokio::spawn(connection.with_upgrades());
    let key = generate_key();
    let response = sender.send_request(request(endpoint, wishes, &key)).await.map_err(no_http)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let (agreed, subprotocol) = check(response.headers(), wishes, &key)?;
    let socket = hyper::upgrade::on(response).await.map_err(no_http)?;
    Ok(Opened { socket: TokioIo::new(socket), agreed, subprotocol })
}

/// RFC 6455 section 4.1.
fn request(endpoint: &Endpoint, wishes: &Wishes, key: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = endpoint.target.parse().expect("it was part of a URI");
    let headers = request.headers_mut();
    let own = |value: &str| HeaderValue::from_str(value).expect("visible ASCII");
    headers.insert(HOST, own(&endpoint.authority));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("wsgate/", env!("CARGO_PKG_VERSION"))),
    );
    let replaced: Vec<&HeaderName> = wishes.headers.iter().map(|(name, _)| name).collect();
    for name in replaced {
        headers.remove(name);
    }
    for (name, value) in &wishes.headers {
        headers.append(name, value.clone());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, own(key));
    if let Some(bearer) = &wishes.bearer {
        headers.insert(AUTHORIZATION, bearer.clone());
    }
    if let Some(origin) = &wishes.origin {
        headers.insert(ORIGIN, origin.clone());
    }
    if !wishes.subprotocols.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, own(&wishes.subprotocols.join(", ")));
    }
    if wishes.compression {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(offer::OFFER));
    }
    request
}

/// Whether the answer to a handshake with this key is a WebSocket server's, and what it agreed to.
fn check(
    headers: &HeaderMap,
    wishes: &Wishes,
    key: &str,
) -> Result<(Option<Agreed>, Option<String>), Ending> {
    // Lines of one name are one list (RFC 9110 section 5.3).
    let value = |name: HeaderName| {
        let lines =
            headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
        lines.reduce(|list, line| format!("{list}, {line}").into())
    };
    let has = |name, word: &str| {
        value(name).is_some_and(|list| {
            list.split(',').any(|found| found.trim().eq_ignore_ascii_case(word))
        })
    };
    if !has(UPGRADE, "websocket") || !has(CONNECTION, "upgrade") {
        return Err(Ending::NotWebSocket("its answer does not upgrade to a WebSocket"));
    }
    if value(SEC_WEBSOCKET_ACCEPT).as_deref() != Some(&derive_accept_key(key.as_bytes())) {
        return Err(Ending::NotWebSocket("its Sec-WebSocket-Accept does not fit the key"));
    }
    let extensions = value(SEC_WEBSOCKET_EXTENSIONS).filter(|answer| !answer.trim().is_empty());
    let agreed = match extensions {
        Some(answer) if wishes.compression => Some(offer::agreed(&answer)?),
        Some(_) => return Err(Ending::NotWebSocket("it uses an extension that was not offered")),
        None => None,
    };
    let subprotocol = value(SEC_WEBSOCKET_PROTOCOL).map(Cow::into_owned);
    match subprotocol {
        Some(chosen) if !wishes.subprotocols.contains(&chosen) => {
            Err(Ending::UnknownSubprotocol(chosen))
        }
        subprotocol => Ok((agreed, subprotocol)),
    }
}

/// What an answer with another status than 101 says.
async fn refusal(response: Response<Incoming>) -> Ending {
    let status = response.status();
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    // In seconds; a date is as good as none, since clocks differ.
    let retry_after = header(RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok());
    let location = header(LOCATION).map(|place| format!("it is at {place}, which is not followed"));
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        // It is long, or does not come: its status says enough.
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    let told = location.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&body);
        text.trim().chars().take(MAX_TOLD_CHARACTERS).collect()
    });
    Ending::Refused { status, retry_after: retry_after.map(Duration::from_secs), told }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn wishes() -> Wishes {
        Wishes {
            subprotocols: vec!["a".into(), "b".into()],
            compression: true,
            ..Wishes::default()
        }
    }

    fn answer(others: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (UPGRADE, "WebSocket"),
            (CONNECTION, "keep-alive, Upgrade"),
            // The example of RFC 6455 section 1.3.
            (SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for (name, value) in others {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn request_is_that_of_rfc_6455_with_what_is_wished() {
        let endpoint = "ws://example.com/chat?a=b".parse().expect("a URL");
        let wishes = Wishes {
            headers: vec![
                (HeaderName::from_static("x-a"), HeaderValue::from_static("1")),
                (HeaderName::from_static("x-a"), HeaderValue::from_static("2")),
                (USER_AGENT, HeaderValue::from_static("me")),
            ],
            bearer: Some(HeaderValue::from_static("Bearer t")),
            origin: Some(HeaderValue::from_static("https://a.example")),
            ..wishes()
        };
        let request = request(&endpoint, &wishes, KEY);
        assert_eq!(request.uri(), "/chat?a=b");
        let headers = request.headers();
        for (name, value) in [
            ("host", "example.com"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-protocol", "a, b"),
            ("sec-websocket-extensions", offer::OFFER),
            ("authorization", "Bearer t"),
            ("origin", "https://a.example"),
            ("user-agent", "me"),
        ] {
            assert_eq!(headers[name], value);
        }
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn good_answer_says_what_was_chosen() {
        let plain = check(&answer(&[]), &wishes(), KEY).expect("nothing has to be chosen");
        assert_eq!(plain, (None, None));
        let headers = answer(&[
            (SEC_WEBSOCKET_PROTOCOL, "b"),
            (SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate"),
        ]);
        let (agreed, subprotocol) = check(&headers, &wishes(), KEY).expect("both were offered");
        assert!(agreed.is_some());
        assert_eq!(subprotocol.as_deref(), Some("b"));
    }

    #[test]
    fn every_line_of_an_answer_counts() {
        let mut headers = answer(&[(CONNECTION, "keep-alive"), (UPGRADE, "x-other")]);
        headers.append(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.append(UPGRADE, HeaderValue::from_static("websocket"));
        assert!(check(&headers, &wishes(), KEY).is_ok());
        for (name, chosen, another) in [
            (SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate", "x-other"),
            (SEC_WEBSOCKET_PROTOCOL, "a", "b"),
        ] {
            let mut headers = answer(&[(name.clone(), chosen)]);
            assert!(check(&headers, &wishes(), KEY).is_ok());
            headers.append(&name, HeaderValue::from_static(another));
            assert!(check(&headers, &wishes(), KEY).is_err(), "{name}");
        }
    }

    #[test]
    fn answer_that_does_not_fit_is_refused() {
        for other in [
            (UPGRADE, "h2c"),
            (CONNECTION, "close"),
            (SEC_WEBSOCKET_ACCEPT, "AAAA"),
            (SEC_WEBSOCKET_PROTOCOL, "c"),
            (SEC_WEBSOCKET_EXTENSIONS, "x-other"),
        ] {
            assert!(
                check(&answer(std::slice::from_ref(&other)), &wishes(), KEY).is_err(),
                "{other:?}"
            );
        }
        let without = Wishes::default();
        let deflate = answer(&[(SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate")]);
        assert!(check(&deflate, &without, KEY).is_err());
    }
}
