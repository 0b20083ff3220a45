//! The ways to a gateway, so that one test can take them all.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::tls::{self, Authority};
use crate::support::{until, within};

/// The name that the certificates of these gateways are for.
pub(crate) const HOST: &str = "gateway.example";

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Unix,
    Tls12,
    Tls13,
    /// Over TLS, each WebSocket on a connection of its own.
    Http2,
    /// Without TLS, all WebSockets on one connection.
    Http2Together,
}

/// All of them.
pub(crate) const TRANSPORTS: [Transport; 6] = [
    Transport::Plain,
    Transport::Unix,
    Transport::Tls12,
    Transport::Tls13,
    Transport::Http2,
    Transport::Http2Together,
];

/// A gateway, and one way to it.
pub(crate) struct Entry {
    pub(crate) gateway: Gateway,
    transport: Transport,
    authority: Authority,
    /// The connection for all WebSockets.
    together: Option<Http2>,
}

impl Entry {
    /// Starts `wsgate serve` with these flags, reached by `transport`.
    pub(crate) async fn start(transport: Transport, flags: &[&str]) -> Self {
        let authority = Authority::new();
        let of_transport: Vec<String> = match transport {
            Transport::Plain => Vec::new(),
            Transport::Unix => {
                let path = authority.cert().with_file_name("socket");
                vec![format!("--listen=unix:{}", path.display())]
            }
            Transport::Tls12 | Transport::Tls13 | Transport::Http2 => {
                authority.sign("gateway", &[HOST]).flags().to_vec()
            }
            Transport::Http2Together => vec!["--http2=all".to_owned()],
        };
        let flags: Vec<&str> =
            flags.iter().copied().chain(of_transport.iter().map(String::as_str)).collect();
        let gateway = Gateway::start(&flags).await;
        let together = match transport {
            Transport::Http2Together => {
                let socket = TcpStream::connect(gateway.listen).await.expect("it listens");
                Some(Http2::over(socket).await)
            }
            _ => None,
        };
        Self { gateway, transport, authority, together }
    }

    /// A WebSocket client, once its handshake is over.
    pub(crate) async fn connect(&mut self, path: &str) -> Client {
        let address = self.gateway.listen;
        match self.transport {
            Transport::Plain => self.gateway.connect(path).await,
            Transport::Unix => {
                let path_of_socket = self.authority.cert().with_file_name("socket");
                let socket = UnixStream::connect(path_of_socket).await.expect("it listens");
                Client::connect_over(socket, HOST, path).await
            }
            Transport::Tls12 | Transport::Tls13 => {
                let version = match self.transport {
                    Transport::Tls12 => &rustls::version::TLS12,
                    _ => &rustls::version::TLS13,
                };
                let connector = self.authority.connector_with(&[version], &[b"http/1.1"], None);
                let socket = tls::connect(&connector, address, HOST).await.expect("TLS");
                Client::connect_over(socket, HOST, path).await
            }
            Transport::Http2 => {
                let connector = self.authority.connector_with(rustls::ALL_VERSIONS, &[b"h2"], None);
                let socket = tls::connect(&connector, address, HOST).await.expect("TLS");
                Http2::over(socket).await.connect(path).await
            }
            Transport::Http2Together => {
                self.together.as_mut().expect("it was connected at the start").connect(path).await
            }
        }
    }

    /// `count` of them.
    pub(crate) async fn connect_many(&mut self, path: &str, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.connect(path).await);
        }
        clients
    }
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Http2 {
    requests: SendRequest<Empty<Bytes>>,
}

impl Http2 {
    /// Over a socket on which nothing was said yet.
    pub(crate) async fn over<S>(socket: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket));
        let (requests, mut connection) =
            within("HTTP/2", handshake).await.expect("the gateway speaks it");
        // Its settings come before anything else, and nobody is woken for them.
        until("settings that allow extended CONNECT", async || {
            let look = poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll(cx)));
            let ended = look.await;
            assert!(ended.is_pending(), "the gateway lets go: {ended:?}");
            connection.is_extended_connect_protocol_enabled().then_some(())
        })
        .await;
        tokio::spawn(async move { _ = connection.await });
        Self { requests }
    }

    /// A WebSocket on a stream of it (RFC 8441 section 5).
    pub(crate) async fn connect(&mut self, path: &str) -> Client {
        let response = self.ask(path, Some("websocket"), &[]).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let id = response.headers()["x-connection-id"].to_str().expect("a UUID").to_owned();
        let upgraded = hyper::upgrade::on(response).await.expect("it was answered with 200");
        Client::from_upgraded(upgraded, id)
    }

    /// The connection is no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.requests.is_closed()
    }

    /// What is answered to an extended CONNECT, or to a GET where there is no `protocol`.
    pub(crate) async fn ask(
        &mut self,
        path: &str,
        protocol: Option<&'static str>,
        headers: &[(&str, &str)],
    ) -> http::Response<hyper::body::Incoming> {
        let ready = within("room for a stream", self.requests.ready()).await;
        ready.expect("the gateway has not let go");
        let mut request = Request::builder()
            .method(if protocol.is_some() { Method::CONNECT } else { Method::GET })
            .version(Version::HTTP_2)
            .uri(format!("https://{HOST}{path}"))
            .header("sec-websocket-version", "13");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Empty::new()).expect("tests ask for good paths");
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        let answer = self.requests.send_request(request);
        within("an answer over HTTP/2", answer).await.expect("the gateway answers")
    }
}
