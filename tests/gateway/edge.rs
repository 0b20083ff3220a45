//! The parts of the edge together: proxies, TLS, HTTP/2, tokens, and one gateway that takes over from another.

use http::StatusCode;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::place::Place;
use crate::support::tls::{self, Authority};
use crate::support::transport::{HOST, Http2};

const PROXIED: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n";

/// Where the gateway says that the client of this connection is.
async fn address_of(gateway: &Gateway, connection: &str) -> String {
    let answer = gateway.call("connection", json!({ "connection": connection })).await;
    answer["address"].as_str().expect("it has one").to_owned()
}

async fn assert_echoes(client: &mut Client) {
    client.send_text("hello").await;
    assert_eq!(client.read_text().await, "hello");
}

/// What a line of the port file says behind `name`.
fn told(gateway: &Gateway, name: &str) -> Vec<String> {
    let said = gateway.ports.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    said.map(str::to_owned).collect()
}

#[tokio::test]
async fn proxy_that_passes_tls_through_names_its_client_before_that() {
    let authority = Authority::new();
    let [cert, key] = authority.sign("gateway", &[HOST]).flags();
    let flags = ["--shards", "2", "--trusted-proxies", "127.0.0.0/8", &cert, &key];
    let gateway = Gateway::start(&flags).await;
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let connector = authority.connector_with(rustls::ALL_VERSIONS, &[protocol], None);
        let mut socket = TcpStream::connect(gateway.listen).await.expect("it listens");
        socket.write_all(PROXIED).await.expect("it takes the header");
        let name = ServerName::try_from(HOST).expect("a name");
        let socket = connector.connect(name, socket).await.expect("TLS behind the header");
        let mut client = match protocol {
            b"h2" => Http2::over(socket).await.connect("/echo").await,
            _ => Client::connect_over(socket, HOST, "/echo").await,
        };
        assert_eq!(address_of(&gateway, &client.id).await, "192.0.2.7");
        assert_echoes(&mut client).await;
    }
    // Without the header it is no client of this gateway.
    let connector = authority.connector();
    assert!(tls::connect(&connector, gateway.listen, HOST).await.is_err());
    let reason = [("reason", "proxy_protocol")];
    gateway.until_metric("wsgate_connections_rejected_total", &reason, 1.0).await;
}

#[tokio::test]
async fn proxy_on_a_unix_socket_names_its_client() {
    let path = Place::new("sock");
    let listen = format!("--plain-listen=unix:{}", path.text());
    let gateway = Gateway::start(&["--shards", "2", &listen, "--trusted-proxies", "unix"]).await;
    let mut socket = UnixStream::connect(path.path()).await.expect("it listens");
    socket.write_all(PROXIED).await.expect("it takes the header");
    let mut client = Client::connect_over(socket, HOST, "/echo").await;
    assert_eq!(address_of(&gateway, &client.id).await, "192.0.2.7");
    assert_echoes(&mut client).await;
    // Whoever comes by TCP speaks for nobody else.
    let client = gateway.connect("/echo").await;
    assert_eq!(address_of(&gateway, &client.id).await, "127.0.0.1");
}

#[tokio::test]
async fn requests_on_one_http2_connection_of_a_proxy_are_their_own_clients() {
    let flags = ["--shards", "1", "--http2", "all", "--trusted-proxies", "127.0.0.0/8"];
    let limits = ["--proxy-protocol", "off", "--max-connections-per-address", "1"];
    let gateway = Gateway::start(&[&flags[..], &limits].concat()).await;
    let socket = TcpStream::connect(gateway.listen).await.expect("it listens");
    let mut http2 = Http2::over(socket).await;
    let websocket = Some("websocket");
    let mut answers = Vec::new();
    for (client, status) in [
        ("192.0.2.1", StatusCode::OK),
        ("192.0.2.2", StatusCode::OK),
        ("192.0.2.1", StatusCode::TOO_MANY_REQUESTS),
    ] {
        let answer = http2.ask("/echo", websocket, &[("x-forwarded-for", client)]).await;
        assert_eq!(answer.status(), status, "{client}");
        if status == StatusCode::OK {
            let id = answer.headers()["x-connection-id"].to_str().expect("a UUID");
            assert_eq!(address_of(&gateway, id).await, client);
        }
        answers.push(answer);
    }
    // What is no handshake takes nobody's place.
    let page = http2.ask("/echo", None, &[("x-forwarded-for", "192.0.2.3")]).await;
    assert_eq!(page.status(), StatusCode::BAD_REQUEST);
    let answer = http2.ask("/echo", websocket, &[("x-forwarded-for", "192.0.2.3")]).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn client_over_http2_is_counted_for_its_address_as_any_other() {
    let flags = ["--shards", "1", "--http2", "all", "--max-connections-per-address", "3"];
    let gateway = Gateway::start(&flags).await;
    let socket = TcpStream::connect(gateway.listen).await.expect("it listens");
    let mut http2 = Http2::over(socket).await;
    // The socket is one, and each WebSocket on it another.
    let mut first = http2.connect("/echo").await;
    let _second = http2.connect("/echo").await;
    assert_eq!(address_of(&gateway, &first.id).await, "127.0.0.1");
    let third = http2.ask("/echo", Some("websocket"), &[]).await;
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_echoes(&mut first).await;
}

#[tokio::test]
async fn token_over_http2_is_believed_and_appears_nowhere() {
    let secret = "open, sesame, open, sesame, open, sesame";
    let flags = ["--shards", "1", "--http2", "all", "--log-level", "trace"];
    let gateway = Gateway::start(&[&flags[..], &["--token-hmac-secret", secret]].concat()).await;
    let header = jsonwebtoken::Header::default();
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes()).expect("a secret");
    let claims = json!({ "sub": "alice", "channels": ["news"] });
    let token = jsonwebtoken::encode(&header, &claims, &key).expect("it is signed");
    let socket = TcpStream::connect(gateway.listen).await.expect("it listens");
    let mut http2 = Http2::over(socket).await;
    let bearer = format!("Bearer {token}");
    let protocols = format!("bearer, {token}");
    let query = format!("/channels/news?token={token}");
    let websocket = Some("websocket");
    let mut answers = Vec::new();
    for (path, headers, status) in [
        ("/channels/news", &[("authorization", bearer.as_str())][..], StatusCode::OK),
        ("/channels/news", &[("sec-websocket-protocol", protocols.as_str())], StatusCode::OK),
        (query.as_str(), &[], StatusCode::OK),
        ("/channels/news", &[], StatusCode::UNAUTHORIZED),
        ("/channels/other", &[("authorization", bearer.as_str())], StatusCode::FORBIDDEN),
    ] {
        let answer = http2.ask(path, websocket, headers).await;
        assert_eq!(answer.status(), status, "{headers:?}");
        let selected = answer.headers().get("sec-websocket-protocol");
        let asked = headers.iter().any(|(name, _)| *name == "sec-websocket-protocol");
        assert_eq!(selected.map(|value| value.as_bytes()), asked.then_some(&b"bearer"[..]));
        answers.push(answer);
    }
    let log = gateway.log();
    assert!(log.contains("connection opened"), "the log is at trace");
    let signature = token.rsplit('.').next().expect("three parts");
    for kept in [secret, signature, "eyJ"] {
        assert!(!log.contains(kept), "{kept} is in the log");
    }
}

#[tokio::test]
async fn every_kind_of_listener_is_taken_over_and_none_is_refused() {
    let authority = Authority::new();
    let [cert, key] = authority.sign("gateway", &[HOST]).flags();
    let (socket, handover) = (Place::new("sock"), Place::new("handover"));
    let unix = format!("--plain-listen=unix:{}", socket.text());
    let handover = format!("--handover-socket={}", handover.text());
    let drain = ["--drain-grace", "0s", "--drain-duration", "100ms"];
    let flags =
        [&["--plain-listen=127.0.0.1:0", &unix, &handover, &cert, &key][..], &drain].concat();
    let one_shard = [&["--shards", "1"], &flags[..]].concat();
    let two_shards = [&["--shards", "2"], &flags[..]].concat();
    let connector = authority.connector();
    let mut gateway = Gateway::start(&one_shard).await;
    let (tls_at, plain_at) = (gateway.listen, told(&gateway, "plain_listen"));
    assert_eq!(plain_at.len(), 2);
    for flags in [&two_shards, &one_shard] {
        let successor = Gateway::start(flags).await;
        let mut predecessor = std::mem::replace(&mut gateway, successor);
        assert!(predecessor.exit().await.success());
        assert_eq!((gateway.listen, told(&gateway, "plain_listen")), (tls_at, plain_at.clone()));
        let encrypted = tls::connect(&connector, tls_at, HOST).await.expect("TLS");
        let local = UnixStream::connect(socket.path()).await.expect("the path is there still");
        let plain = plain_at.iter().find_map(|address| address.parse().ok()).expect("an address");
        assert_echoes(&mut Client::connect_over(encrypted, HOST, "/echo").await).await;
        assert_echoes(&mut Client::connect_over(local, HOST, "/echo").await).await;
        assert_echoes(&mut Client::connect(plain, "/echo").await).await;
    }
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.exit().await.success());
    assert!(!socket.path().exists(), "the path ends with the last that listened there");
}
