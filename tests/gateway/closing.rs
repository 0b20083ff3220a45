//! How connections end: by either side's Close, by a rule that was broken, by silence, or by a
//! socket that is simply gone.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::Message;
use crate::support::gateway::Gateway;
use crate::support::raw::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, RawClient, TEXT, close_payload, encode,
    encode_header, encode_with, mask, request,
};

const CLOSED: &str = "wsgate_connections_closed_total";

#[tokio::test]
async fn close_of_the_client_is_answered_with_its_code_and_then_the_socket_ends() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    for code in [1000, 1001, 1003, 1008, 1011, 3000, 4999] {
        for path in ["/echo", "/channels/news"] {
            let mut client = gateway.open_raw(path).await;
            client.send_frame(CLOSE, &close_payload(code, "good night")).await;
            assert_eq!(client.read_frame().await.close().0, code);
            client.read_end().await;
        }
    }
    let remote = ("initiator", "remote");
    gateway.until_metric(CLOSED, &[remote], 14.0).await;
    for (label, closed) in [("1000", 2.0), ("1011", 2.0), ("3xxx", 2.0), ("4xxx", 2.0)] {
        gateway.until_metric(CLOSED, &[("code", label), remote], closed).await;
    }
}

#[tokio::test]
async fn close_without_a_code_is_answered_without_one() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut client = gateway.open_raw("/echo").await;
    client.send_frame(CLOSE, b"").await;
    let frame = client.read_frame().await;
    assert_eq!((frame.opcode, frame.payload), (CLOSE, Vec::new()));
    client.read_end().await;
    gateway.until_metric(CLOSED, &[("code", "1005"), ("initiator", "remote")], 1.0).await;
}

#[tokio::test]
async fn what_came_before_a_close_is_answered_and_what_came_behind_it_is_not() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut client = gateway.open_raw("/echo").await;
    let bytes = [
        encode(TEXT, b"before"),
        encode(CLOSE, &close_payload(1000, "")),
        encode(TEXT, b"behind"),
        encode(PING, b""),
    ];
    client.send(&bytes.concat()).await;
    assert_eq!(client.read_message(TEXT).await, b"before");
    assert_eq!(client.read_frame().await.close(), (1000, ""));
    client.read_end().await;
}

#[tokio::test]
async fn client_that_is_disconnected_gets_the_code_and_reason_and_is_gone() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    for path in ["/echo", "/channels/news"] {
        let mut client = gateway.connect(path).await;
        let id = client.id.clone();
        let parameters = json!({ "connection": id, "code": 4001, "reason": "bye" });
        assert_eq!(gateway.call("disconnect", parameters.clone()).await, json!({}));
        assert_eq!(client.read().await, Message::Close(Some(4001), "bye".to_owned()));
        gateway.until_metric("wsgate_connections", &[], 0.0).await;
        let mut requests = gateway.requests().await;
        let again = requests.call("disconnect", parameters).await.json();
        assert_eq!(again["error"]["code"], 404, "{again}");
    }
    gateway.until_metric(CLOSED, &[("code", "4xxx"), ("initiator", "local")], 2.0).await;
}

#[tokio::test]
async fn messages_between_our_close_and_the_clients_answer_have_no_effect() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut bystander = gateway.connect("/channels/news").await;
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(&request("/channels/news?hello=true")).await;
    client.read_head().await;
    let hello = client.read_message(TEXT).await;
    let hello: serde_json::Value = serde_json::from_slice(&hello).expect("the greeting is JSON");
    gateway.call("disconnect", json!({ "connection": hello["connection"] })).await;
    assert_eq!(client.read_frame().await.close().0, 1000);
    client.send_frame(TEXT, b"too late").await;
    client.send_frame(PING, b"").await;
    client.send_frame(CLOSE, &close_payload(1000, "")).await;
    client.read_end().await;
    gateway.call("publish", json!({ "channel": "news", "data": "in time" })).await;
    assert_eq!(bystander.read_text().await, "in time");
}

/// Bytes that break a rule, what is broken, the kind that is counted, and the code.
fn violations() -> Vec<(&'static str, Vec<u8>, &'static str, u16)> {
    let unmasked =
        |first_byte: u8, payload: &[u8]| [&[first_byte, payload.len() as u8], payload].concat();
    let length =
        |marker: u8, length: &[u8]| [&[FIN | BINARY, 0x80 | marker][..], length, &[0; 4]].concat();
    let close = |code: u16| encode(CLOSE, &close_payload(code, ""));
    let mut violations = vec![
        ("RSV1", encode_with(0xc1, b"x"), "reserved_bits", 1002),
        ("RSV2", encode_with(0xa1, b"x"), "reserved_bits", 1002),
        ("RSV3", encode_with(0x91, b"x"), "reserved_bits", 1002),
        ("data opcode 3", encode(0x3, b"x"), "reserved_opcode", 1002),
        ("control opcode 11", encode(0xb, b"x"), "reserved_opcode", 1002),
        ("unmasked text", unmasked(FIN | TEXT, b"hello"), "unmasked_frame", 1002),
        ("unmasked Close", unmasked(FIN | CLOSE, b""), "unmasked_frame", 1002),
        ("Ping without FIN", encode_with(PING, b"x"), "fragmented_control_frame", 1002),
        ("Ping of 126 bytes", encode(PING, &[0; 126]), "control_frame_too_long", 1002),
        ("125 in 16 bits", length(126, &[0, 125]), "length_not_minimal", 1002),
        ("65535 in 64 bits", length(127, &65_535u64.to_be_bytes()), "length_not_minimal", 1002),
        ("2^63 bytes", length(127, &(1u64 << 63).to_be_bytes()), "length_overflow", 1002),
        ("continuation of nothing", encode(CONTINUATION, b"x"), "unexpected_continuation", 1002),
        (
            "text within a message",
            [encode_with(TEXT, b"x"), encode(TEXT, b"x")].concat(),
            "interleaved_message",
            1002,
        ),
        ("Close with half a code", encode(CLOSE, &[3]), "close_payload_of_one_byte", 1002),
        ("reason that is not UTF-8", encode(CLOSE, b"\x03\xe8\xff"), "close_reason_not_utf8", 1007),
        ("byte that is never UTF-8", encode(TEXT, b"ok \xff"), "text_not_utf8", 1007),
        ("surrogate", encode(TEXT, b"\xed\xa0\x80"), "text_not_utf8", 1007),
        ("character without its end", encode(TEXT, b"\xf0\x9f\xa6"), "text_not_utf8", 1007),
        (
            "bad UTF-8 in a fragment",
            [encode_with(TEXT, b"\xe2"), encode_with(CONTINUATION, b"\x28")].concat(),
            "text_not_utf8",
            1007,
        ),
        (
            "bad UTF-8 in a frame that is not complete",
            [encode_header(FIN | TEXT, 60_000), mask(b"fine, and then \xf4\x90")].concat(),
            "text_not_utf8",
            1007,
        ),
        (
            "message of more than the limit",
            encode_header(FIN | BINARY, 1_001),
            "message_too_big",
            1009,
        ),
        (
            "fragments of more than the limit",
            [encode_with(BINARY, &[0; 600]), encode_header(FIN | CONTINUATION, 401)].concat(),
            "message_too_big",
            1009,
        ),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        violations.push(("Close with a code that may not travel", close(code), "close_code", 1002));
    }
    violations
}

#[tokio::test]
async fn each_broken_rule_is_told_with_its_code_before_the_socket_ends() {
    for (path, max_message_bytes) in [("/echo", "60001"), ("/channels/news", "1000")] {
        let gateway =
            Gateway::start(&["--shards", "1", "--max-message-bytes", max_message_bytes]).await;
        let mut counts = std::collections::BTreeMap::<&str, f64>::new();
        for (what, bytes, kind, code) in violations() {
            let is_small_limit = max_message_bytes == "1000";
            // Each limit is for some of the cases.
            if (kind == "message_too_big" && !is_small_limit)
                || (what.ends_with("not complete") && is_small_limit)
            {
                continue;
            }
            let mut client = gateway.open_raw(path).await;
            client.send(&bytes).await;
            let frame = client.read_frame().await;
            let (found, reason) = frame.close();
            assert_eq!(found, code, "{what} on {path}");
            assert!(!reason.is_empty(), "the reason helps whoever wrote the client: {what}");
            client.read_end().await;
            *counts.entry(kind).or_default() += 1.0;
        }
        gateway.until_metric("wsgate_connections", &[], 0.0).await;
        let metrics = gateway.metrics().await;
        for (kind, count) in &counts {
            let found = metrics.sum("wsgate_protocol_errors_total", &[("kind", kind)]);
            assert_eq!(found, *count, "{kind}");
        }
        let violations: f64 = counts.values().sum();
        assert_eq!(metrics.sum("wsgate_protocol_errors_total", &[]), violations);
        assert_eq!(metrics.sum(CLOSED, &[("initiator", "local")]), violations);
    }
}

#[tokio::test]
async fn message_of_exactly_the_limit_passes_whole_or_in_fragments() {
    let gateway = Gateway::start(&["--shards", "1", "--max-message-bytes", "1000"]).await;
    let mut client = gateway.open_raw("/echo").await;
    let message = vec![b'x'; 1_000];
    client.send_frame(BINARY, &message).await;
    assert_eq!(client.read_message(BINARY).await, message);
    let fragments = [encode_with(BINARY, &message[..600]), encode(CONTINUATION, &message[600..])];
    client.send(&fragments.concat()).await;
    assert_eq!(client.read_message(BINARY).await, message);
}

#[tokio::test]
async fn close_arrives_though_the_client_had_much_more_to_say() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut client = gateway.open_raw("/echo").await;
    // A server that closes its socket over unread bytes resets the connection, and the client may
    // never read why.
    let more = encode(BINARY, &[0; 60_000]).repeat(20);
    client.send(&[encode_with(0xa1, b"RSV2"), more].concat()).await;
    assert_eq!(client.read_frame().await.close().0, 1002);
    client.read_end().await;
}

#[tokio::test]
async fn frames_in_the_same_segment_as_the_request_are_served() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    for path in ["/echo", "/channels/news"] {
        let mut client = RawClient::connect(gateway.listen).await;
        let half = encode(TEXT, b"split");
        let early = [request(path), encode(TEXT, b"early"), encode(PING, b"too"), half[..4].into()];
        client.send(&early.concat()).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        // The order of a channel's answer and of a Pong is not promised.
        let mut frames = Vec::new();
        for _ in 0..2 {
            let frame = client.read_frame().await;
            frames.push((frame.opcode, frame.payload));
        }
        frames.sort();
        assert_eq!(frames, [(TEXT, b"early".to_vec()), (PONG, b"too".to_vec())]);
        client.send(&half[4..]).await;
        assert_eq!(client.read_message(TEXT).await, b"split");
        client.send_frame(CLOSE, &close_payload(1000, "")).await;
        assert_eq!(client.read_frame().await.close().0, 1000);
    }
    for (early, code) in
        [(encode(CLOSE, &close_payload(4000, "")), 4000), (encode_with(0xc1, b"RSV1"), 1002)]
    {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(&[request("/echo"), early].concat()).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        assert_eq!(client.read_frame().await.close().0, code);
        client.read_end().await;
    }
}

#[tokio::test]
async fn client_that_never_answers_close_is_let_go_after_five_seconds() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut silent = gateway.open_raw("/channels/news?hello=true").await;
    let hello = silent.read_message(TEXT).await;
    let hello: serde_json::Value = serde_json::from_slice(&hello).expect("the greeting is JSON");
    let mut deaf = gateway.open_raw("/echo").await;
    let start = Instant::now();
    gateway.call("disconnect", json!({ "connection": hello["connection"] })).await;
    deaf.send(&encode_with(0xa1, b"RSV2")).await;
    assert_eq!(silent.read_frame().await.close().0, 1000);
    assert_eq!(deaf.read_frame().await.close().0, 1002);
    silent.read_end().await;
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    let took = start.elapsed();
    assert!((4.9..15.0).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test]
async fn socket_that_is_closed_or_reset_leaves_no_connection_behind() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut bystander = gateway.connect("/channels/news").await;
    for path in ["/echo", "/channels/news"] {
        let mut half_closed = gateway.open_raw(path).await;
        let unfinished = &encode(TEXT, b"unfinished")[..7];
        half_closed.send(&[&encode(TEXT, b"last words"), unfinished].concat()).await;
        half_closed.shut_down().await;
        if path == "/echo" {
            assert_eq!(half_closed.read_message(TEXT).await, b"last words");
            half_closed.read_end().await;
        } else {
            assert_eq!(bystander.read_text().await, "last words");
        }

        gateway.open_raw(path).await.reset();
        let mut in_a_frame = gateway.open_raw(path).await;
        in_a_frame.send(&encode(TEXT, &[b'x'; 3_000])[..1_000]).await;
        in_a_frame.reset();
        drop(gateway.connect(path).await);
        gateway.until_metric("wsgate_connections", &[], 1.0).await;
    }
    drop(bystander);
    let abnormal = [("code", "1006"), ("initiator", "remote")];
    gateway.until_metric(CLOSED, &abnormal, 9.0).await;
    for name in ["connections", "subscriptions", "channels", "outbound_queue_bytes"] {
        gateway.until_metric(&format!("wsgate_{name}"), &[], 0.0).await;
    }
}

#[tokio::test]
async fn silent_client_is_pinged_and_then_closed_with_1001() {
    let times = ["--ping-interval", "200ms", "--idle-timeout", "3s"];
    let gateway = Gateway::start(&[&["--shards", "1"][..], &times].concat()).await;
    for path in ["/echo", "/channels/news"] {
        let start = Instant::now();
        let mut client = gateway.open_raw(path).await;
        let mut pings = 0;
        let close = loop {
            let frame = client.read_frame().await;
            if frame.opcode != PING {
                break frame;
            }
            assert_eq!(frame.payload, b"");
            pings += 1;
        };
        assert_eq!(close.close(), (1001, "idle timeout"));
        // Fourteen, where the machine has time for each.
        assert!((3..15).contains(&pings), "{pings}");
        assert!(start.elapsed() >= Duration::from_millis(2_900), "{:?}", start.elapsed());
        client.send_frame(CLOSE, &close_payload(1001, "")).await;
        client.read_end().await;
    }
    gateway.until_metric(CLOSED, &[("code", "1001"), ("initiator", "local")], 2.0).await;
}

#[tokio::test]
async fn client_that_answers_pings_stays_beyond_the_idle_timeout() {
    let times = ["--ping-interval", "250ms", "--idle-timeout", "4s"];
    let gateway = Gateway::start(&[&["--shards", "1"][..], &times].concat()).await;
    let mut client = gateway.open_raw("/echo").await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        assert_eq!(client.read_message(PING).await, b"");
        client.send_frame(PONG, b"").await;
    }
    client.send_frame(TEXT, b"still here").await;
    assert_eq!(client.read_message(TEXT).await, b"still here");
}

#[tokio::test]
async fn single_bytes_of_a_slow_frame_count_as_life() {
    let times = ["--ping-interval", "0s", "--idle-timeout", "2s"];
    let gateway = Gateway::start(&[&["--shards", "1"][..], &times].concat()).await;
    let mut client = gateway.open_raw("/echo").await;
    let mut clock = tokio::time::interval(Duration::from_millis(100));
    for byte in encode(TEXT, b"twenty bytes, slowly") {
        clock.tick().await;
        client.send(&[byte]).await;
    }
    assert_eq!(client.read_message(TEXT).await, b"twenty bytes, slowly");
    assert_eq!(client.read_frame().await.close(), (1001, "idle timeout"));
}
