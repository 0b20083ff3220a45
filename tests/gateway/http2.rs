//! WebSockets over HTTP/2 (RFC 8441): what is answered, and what bounds a connection with many of them.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::client::Message;
use crate::support::gateway::Gateway;
use crate::support::raw::{RawClient, TEXT, encode};
use crate::support::transport::Http2;
use crate::support::until;

/// How a client begins: the preface and empty settings (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) const HEADERS: u8 = 1;
pub(crate) const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Error codes of RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// `:method` GET, `:scheme` https and `:path` / out of HPACK's static table.
const GET: &[u8] = &[0x82, 0x87, 0x84];

/// A frame (RFC 9113 section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The error code of the last GOAWAY in what the gateway has said until its end.
fn goaway(mut said: &[u8]) -> Option<u32> {
    let mut code = None;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = said {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(payload) = rest.get(..length) else { break };
        if *kind == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().expect("four bytes")));
        }
        said = &rest[length..];
    }
    code
}

/// Whoever connects is a proxy, which says in each request for whom it speaks.
const TRUSTED: [&str; 4] = ["--trusted-proxies", "127.0.0.0/8", "--proxy-protocol", "off"];

/// A name and a value that HPACK is not to remember (RFC 7541 section 6.2.2).
fn header(name: &str, value: &str) -> Vec<u8> {
    let (name_bytes, value_bytes) = (name.len() as u8, value.len() as u8);
    [&[0x00, name_bytes], name.as_bytes(), &[value_bytes], value.as_bytes()].concat()
}

/// A request on `stream` for a WebSocket at `/echo`, with these headers more.
fn extended_connect(stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/echo"),
        (":authority", "gateway"),
        ("sec-websocket-version", "13"),
    ];
    let fields = fields.iter().chain(headers).flat_map(|(name, value)| header(name, value));
    frame(HEADERS, END_HEADERS, stream, &fields.collect::<Vec<u8>>())
}

/// An HTTP/2 connection with a WebSocket on its first stream.
async fn open_raw(gateway: &Gateway) -> RawClient {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(PREFACE).await;
    client.send(&extended_connect(1, &[])).await;
    assert_echo(&mut client, 1, "the first").await;
    client
}

async fn assert_echo(client: &mut RawClient, stream: u32, text: &str) {
    client.send(&frame(DATA, 0, stream, &encode(TEXT, text.as_bytes()))).await;
    client.reader.read_through(text.as_bytes()).await;
}

async fn start(flags: &[&str]) -> Gateway {
    Gateway::start(&[&["--shards", "1", "--http2", "all"], flags].concat()).await
}

async fn connect(gateway: &Gateway) -> Http2 {
    Http2::over(TcpStream::connect(gateway.listen).await.expect("it listens")).await
}

#[tokio::test]
async fn each_request_that_is_no_handshake_is_told_why_and_the_others_go_on() {
    let gateway = start(&[]).await;
    let mut http2 = connect(&gateway).await;
    let mut client = http2.connect("/echo").await;
    let websocket = Some("websocket");
    for (path, protocol, headers, status, text) in [
        ("/echo", None, &[][..], StatusCode::BAD_REQUEST, "opened with CONNECT"),
        ("/nowhere", None, &[], StatusCode::NOT_FOUND, ""),
        ("/nowhere", websocket, &[], StatusCode::NOT_FOUND, ""),
        ("/channels/", websocket, &[], StatusCode::BAD_REQUEST, ""),
        ("/echo", Some("connect-udp"), &[], StatusCode::NOT_IMPLEMENTED, "websocket"),
        (
            "/echo",
            websocket,
            &[("origin", "https://evil.example")],
            StatusCode::FORBIDDEN,
            "origin",
        ),
        (
            "/echo",
            websocket,
            &[("sec-websocket-version", "8")],
            StatusCode::UPGRADE_REQUIRED,
            "version 13",
        ),
    ] {
        let answer = http2.ask(path, protocol, headers).await;
        assert_eq!(answer.status(), status, "{path} {protocol:?} {headers:?}");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(text), "{body}");
        client.send_text("still here").await;
        assert_eq!(client.read_text().await, "still here");
    }
    gateway.until_metric("wsgate_connections_rejected_total", &[], 7.0).await;
    assert_eq!(gateway.metrics().await.sum("wsgate_connections", &[]), 1.0);
}

#[tokio::test]
async fn compression_is_negotiated_and_each_websocket_counts() {
    let gateway = start(&["--max-connections", "3"]).await;
    let mut http2 = connect(&gateway).await;
    let offer = [("sec-websocket-extensions", "permessage-deflate")];
    let deflated = http2.ask("/echo", Some("websocket"), &offer).await;
    assert_eq!(deflated.status(), StatusCode::OK);
    let agreed = deflated.headers()["sec-websocket-extensions"].to_str().expect("ASCII");
    assert!(agreed.starts_with("permessage-deflate"), "{agreed}");
    assert!(!deflated.headers().contains_key("sec-websocket-accept"));
    gateway.until_metric("wsgate_compressed_connections", &[], 1.0).await;
    let second = http2.connect("/echo").await;
    // The socket is one, and each WebSocket on it.
    let third = http2.ask("/echo", Some("websocket"), &[]).await;
    assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(third.headers()["retry-after"], "5");
    drop(second);
    gateway.until_metric("wsgate_connections", &[], 1.0).await;
    http2.connect("/echo").await;
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_their_connection() {
    let gateway = start(&[]).await;
    let mut attacker = RawClient::connect(gateway.listen).await;
    let mut flood = PREFACE.to_vec();
    for stream in (1..2_000).step_by(2) {
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, GET));
        flood.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    attacker.offer(&flood).await;
    let said = attacker.reader.read_rest().await;
    assert_eq!(goaway(&said), Some(ENHANCE_YOUR_CALM), "{} bytes", said.len());
    connect(&gateway).await.connect("/echo").await;
}

#[tokio::test]
async fn headers_without_end_end_their_connection() {
    let gateway = start(&[]).await;
    let before = gateway.memory_bytes();
    let mut attacker = RawClient::connect(gateway.listen).await;
    attacker.send(PREFACE).await;
    attacker.offer(&frame(HEADERS, END_STREAM, 1, GET)).await;
    // A header of 100 bytes that is not to be remembered, over and over.
    let header = [&[0x00, 1, b'x', 100][..], &[b'y'; 100]].concat();
    for _ in 0..200 {
        attacker.offer(&frame(CONTINUATION, 0, 1, &header.repeat(150))).await;
    }
    let said = attacker.reader.read_rest().await;
    assert!(goaway(&said).is_none_or(|code| code != NO_ERROR), "it ended for nothing");
    let grown = gateway.memory_bytes().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes for headers");
    connect(&gateway).await.connect("/echo").await;
}

#[tokio::test]
async fn connection_without_a_websocket_is_let_go_with_goaway() {
    let gateway = start(&["--handshake-timeout", "300ms", "--idle-timeout", "400ms"]).await;
    let rejected = "wsgate_connections_rejected_total";
    let mut silent = RawClient::connect(gateway.listen).await;
    silent.send(PREFACE).await;
    assert_eq!(goaway(&silent.reader.read_rest().await), Some(NO_ERROR));
    gateway.until_metric(rejected, &[("reason", "timeout")], 1.0).await;
    // Half of a preface is no more than half of a request.
    let mut half = RawClient::connect(gateway.listen).await;
    half.send(&PREFACE[..7]).await;
    half.reader.read_rest().await;
    gateway.until_metric(rejected, &[("reason", "timeout")], 2.0).await;

    let mut used = RawClient::connect(gateway.listen).await;
    used.send(PREFACE).await;
    used.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)).await;
    assert_eq!(goaway(&used.reader.read_rest().await), Some(NO_ERROR));
}

/// What was asked was looked at again and again, since more is always to be read where the end is.
#[tokio::test]
async fn half_a_preface_and_the_end_let_go_at_once() {
    let gateway = start(&["--handshake-timeout", "60s"]).await;
    for bytes in [0, 3, PREFACE.len() - 20] {
        let mut half = RawClient::connect(gateway.listen).await;
        half.send(&PREFACE[..bytes]).await;
        half.shut_down().await;
        half.reader.read_rest().await;
    }
    gateway.until_metric("wsgate_connections_rejected_total", &[], 3.0).await;
    let timeouts = [("reason", "timeout")];
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("wsgate_connections_rejected_total", &timeouts), 0.0);
}

#[tokio::test]
async fn path_that_is_none_is_not_logged_with_its_token() {
    let gateway = start(&["--log-level", "trace"]).await;
    let path = b"/channels/my room?token=sesame";
    // HPACK: what is in the static table, then `:path` with a value that is not to be remembered.
    let headers = [&GET[..2], &[0x04, path.len() as u8], path].concat();
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(PREFACE).await;
    client.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &headers)).await;
    client.shut_down().await;
    client.reader.read_rest().await;
    connect(&gateway).await.connect("/echo").await;
    gateway.until_logged("connection opened").await;
    assert!(!gateway.log().contains("sesame"), "{}", gateway.log());
}

/// It was told to try again and refused for as long as it did.
#[tokio::test]
async fn client_that_is_refused_for_its_address_is_let_go_so_that_it_can_come_again() {
    let gateway = start(&["--max-connections-per-address", "1", "--log-level", "debug"]).await;
    let first = gateway.connect("/echo").await;
    let mut refused = RawClient::connect(gateway.listen).await;
    refused.send(PREFACE).await;
    refused.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)).await;
    assert_eq!(goaway(&refused.reader.read_rest().await), Some(NO_ERROR));
    gateway
        .until_metric("wsgate_connections_rejected_total", &[("reason", "address_limit")], 1.0)
        .await;
    gateway.until_logged("handshake refused address=127.0.0.1 reason=\"address_limit\"").await;
    drop(first);
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    let mut again = RawClient::connect(gateway.listen).await;
    again.send(PREFACE).await;
    again.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)).await;
    gateway.until_metric("wsgate_console_requests_total", &[], 1.0).await;
}

/// As long as it asked on it kept the seat of somebody who would be told.
#[tokio::test]
async fn client_that_is_refused_and_asks_on_is_cut_all_the_same() {
    let gateway = start(&["--max-connections-per-address", "1"]).await;
    let _first = gateway.connect("/echo").await;
    let mut refused = RawClient::connect(gateway.listen).await;
    refused.send(PREFACE).await;
    let mut is_over = false;
    for stream in (1..300).step_by(2) {
        // It does not hear of any GOAWAY.
        refused.offer(&frame(HEADERS, END_STREAM | END_HEADERS, stream, GET)).await;
        let rest = tokio::time::timeout(Duration::from_millis(200), refused.reader.read_rest());
        is_over = rest.await.is_ok();
        if is_over {
            break;
        }
    }
    assert!(is_over, "it is there still");
    // For two of its requests there was room, and more.
    gateway.until_metric_above("wsgate_connections_rejected_total", 2.0).await;
}

/// hyper takes a CONNECT with a body for the end of its connection. Behind a proxy the other WebSockets on
/// it are those of others.
#[tokio::test]
async fn request_for_a_websocket_that_announces_a_body_ends_no_other() {
    let gateway = start(&[]).await;
    let mut client = open_raw(&gateway).await;
    let mut streams = (3..).step_by(2);
    // More than may be open at a time, but not at a time.
    for round in 1..=3 {
        let refused = streams.by_ref().take(90);
        let flood = refused.flat_map(|stream| extended_connect(stream, &[("content-length", "5")]));
        client.send(&flood.collect::<Vec<u8>>()).await;
        let (rejected, reason) = ("wsgate_connections_rejected_total", [("reason", "bad_request")]);
        gateway.until_metric(rejected, &reason, 90.0 * f64::from(round)).await;
    }
    assert_echo(&mut client, 1, "still here").await;
    let another = streams.next().expect("there are more");
    client.send(&extended_connect(another, &[])).await;
    assert_echo(&mut client, another, "and another").await;
    client.shut_down().await;
    client.reader.read_rest().await;
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
}

#[tokio::test]
async fn client_that_does_not_read_how_it_is_refused_takes_no_memory() {
    // h2's own bounds would end it at once.
    let gateway = start(&TRUSTED).await;
    let before = gateway.memory_bytes();
    let mut attacker = RawClient::connect_with_receive_buffer(gateway.listen, 4_096).await;
    attacker.send(PREFACE).await;
    let mut streams = (1..).step_by(2);
    for _ in 0..100 {
        let refused = streams.by_ref().take(1_000);
        let flood = refused.flat_map(|stream| extended_connect(stream, &[("content-length", "5")]));
        let flood = flood.collect::<Vec<u8>>();
        let sent = attacker.writer.write_all(&flood);
        // Nobody reads on, or it is cut.
        if !matches!(tokio::time::timeout(Duration::from_millis(500), sent).await, Ok(Ok(()))) {
            break;
        }
    }
    connect(&gateway).await.connect("/echo").await;
    let grown = gateway.memory_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes for what nobody reads");
}

/// Many of its clients may give up at a time.
#[tokio::test]
async fn trusted_proxy_is_not_cut_for_what_its_clients_take_back() {
    let gateway = start(&TRUSTED).await;
    let mut client = open_raw(&gateway).await;
    let flood = (3..303).step_by(2).flat_map(|stream| {
        let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        [extended_connect(stream, &[]), reset].concat()
    });
    client.send(&flood.collect::<Vec<u8>>()).await;
    assert_echo(&mut client, 1, "still here").await;
}

/// Each is reset, and a client may not have many of those. But a proxy brings those of all its clients.
#[tokio::test]
async fn trusted_proxy_is_not_cut_for_what_its_clients_do_wrong() {
    for (flags, is_cut) in [(&[][..], true), (&TRUSTED[..], false)] {
        let gateway = start(flags).await;
        let mut client = open_raw(&gateway).await;
        let path = b"/echo?<";
        let fields = [&GET[..2], &[0x04, path.len() as u8], path].concat();
        let flood =
            (0..150).flat_map(|at| frame(HEADERS, END_STREAM | END_HEADERS, 3 + 2 * at, &fields));
        client.offer(&flood.collect::<Vec<u8>>()).await;
        if is_cut {
            assert_eq!(goaway(&client.reader.read_rest().await), Some(ENHANCE_YOUR_CALM));
        } else {
            assert_echo(&mut client, 1, "still here").await;
        }
    }
}

/// They were free on a connection that had come in.
#[tokio::test]
async fn each_request_for_a_page_is_a_handshake_as_on_a_socket_of_its_own() {
    let gateway = start(&["--max-handshakes-per-second-per-address", "2"]).await;
    let mut http2 = connect(&gateway).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(http2.ask("/", None, &[]).await.status());
    }
    assert_eq!(statuses[0], StatusCode::OK);
    assert!(statuses.contains(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
}

/// On the same one the next WebSocket would come to the same gateway.
#[tokio::test]
async fn client_that_is_to_go_elsewhere_has_to_connect_anew() {
    for is_aged in [true, false] {
        let flags = if is_aged { &["--max-connection-age", "1s"][..] } else { &[] };
        let gateway = start(flags).await;
        let mut http2 = connect(&gateway).await;
        let mut client = http2.connect("/echo").await;
        if !is_aged {
            let body = serde_json::json!({"percent": 100, "duration": "1ms"});
            gateway.call("shed", body).await;
        }
        assert!(matches!(client.read().await, Message::Close(Some(1001), _)));
        until("the end, since GOAWAY was said", async || http2.has_ended().then_some(())).await;
    }
}

#[tokio::test]
async fn websocket_beside_one_that_is_sent_elsewhere_goes_on() {
    let gateway = start(&[]).await;
    let mut client = open_raw(&gateway).await;
    client.send(&extended_connect(3, &[])).await;
    assert_echo(&mut client, 3, "the second").await;
    gateway.call("shed", serde_json::json!({"percent": 50, "duration": "1ms"})).await;
    client.reader.read_through(&[0, 0, 8, GOAWAY]).await;
    // One of the two, whichever.
    client.send(&frame(DATA, 0, 1, &encode(TEXT, b"still here"))).await;
    client.send(&frame(DATA, 0, 3, &encode(TEXT, b"still here"))).await;
    client.reader.read_through(b"still here").await;
}
