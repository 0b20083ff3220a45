//! Requests to the admin port, by hyper's client.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::support::metrics::Metrics;
use crate::support::within;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// The body, which is JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The header called `name`.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header of visible ASCII"))
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, method: Method, path: &str, body: String) -> Answer {
    let mut requests = Requests::connect(address).await;
    requests.ask(method, path, body).await
}

/// A connection for one request after the other.
pub(crate) struct Requests {
    address: SocketAddr,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Requests {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("the admin port is open");
        let handshake = http1::handshake(TokioIo::new(socket));
        let (sender, connection) = handshake.await.expect("nothing is sent yet");
        tokio::spawn(connection);
        Self { address, sender }
    }

    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: String) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .body(Full::from(body))
            .expect("tests ask for good paths");
        let answer = async {
            self.sender.ready().await?;
            let (parts, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>((parts, body))
        };
        let (parts, body) = within("an answer of the admin port", answer).await.expect(path);
        let body = String::from_utf8(body.to_vec()).expect("the admin port answers in UTF-8");
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Calls a method of the API.
    pub(crate) async fn call(&mut self, method: &str, parameters: Value) -> Answer {
        self.ask(Method::POST, &format!("/api/{method}"), parameters.to_string()).await
    }

    /// What Prometheus would see now, for whom no new connection is needed.
    pub(crate) async fn scrape(&mut self) -> Metrics {
        Metrics::parse(&self.ask(Method::GET, "/metrics", String::new()).await.body)
    }
}
