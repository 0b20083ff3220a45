//! A gateway that is told to end says so first, then lets go of its clients gently, and then ends.

use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::gateway::{Gateway, channel_with_home};
use crate::support::raw::{BINARY, CLOSE, RawClient, TEXT, close_payload};

const REASON: &str = "the gateway is draining";

async fn until_not_ready(gateway: &Gateway, reason: &str) {
    let refused = crate::support::until("readyz to say why not", async || {
        let answer = gateway.get("/readyz").await;
        (answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.body.contains(reason))
            .then_some(())
    });
    refused.await;
}

#[tokio::test]
async fn draining_gateway_is_not_ready_at_once_and_serves_on_until_its_grace_is_over() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let flags = ["--shards", "2", "--drain-grace", "60s", "--drain-duration", "60s"];
        let mut gateway = Gateway::start(&flags).await;
        assert_eq!(gateway.get("/readyz").await.body, "ready\n");
        assert_eq!(gateway.metrics().await.sum("wsgate_draining", &[]), 0.0);
        let mut early = gateway.connect("/echo").await;
        gateway.signal(signal);
        until_not_ready(&gateway, "draining: still accepting").await;
        assert_eq!(gateway.get("/healthz").await.status, StatusCode::OK);
        assert_eq!(gateway.metrics().await.sum("wsgate_draining", &[]), 1.0);
        let mut late = gateway.connect("/echo").await;
        for client in [&mut early, &mut late] {
            client.send_text("still served").await;
            assert_eq!(client.read_text().await, "still served");
        }
        let log = gateway.log();
        assert!(log.contains("drain: not ready any more, still accepting"), "{log}");
        assert!(log.contains(name) && log.contains("connections=1"), "{log}");

        // A second signal does not wait for the minute.
        let start = Instant::now();
        gateway.signal(signal);
        assert_eq!(gateway.exit().await.code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert!(gateway.log().contains("second signal: ending at once"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn second_signal_ends_the_closing_at_once_as_well() {
    let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "60s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(gateway.open_raw("/echo").await);
    }
    gateway.signal(Signal::TERM);
    until_not_ready(&gateway, "draining: closing connections").await;
    gateway.signal(Signal::INT);
    assert_eq!(gateway.exit().await.code(), Some(0));
    for client in &mut clients {
        client.reader.read_rest().await;
    }
}

#[tokio::test]
async fn closes_are_spread_evenly_over_the_drain_duration() {
    const CLIENTS: usize = 60;
    const SECONDS: f64 = 3.0;
    let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "3s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut closing = JoinSet::new();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let path = ["/echo", "/channels/news"][number % 2];
        clients.push(gateway.open_raw(path).await);
    }
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    for mut client in clients {
        closing.spawn(async move {
            let close = client.read_close().await;
            let closed_after = start.elapsed().as_secs_f64();
            client.read_end().await;
            (closed_after, close)
        });
    }
    let mut closed = closing.join_all().await;
    closed.sort_by(|one, other| one.0.total_cmp(&other.0));
    for (index, (closed_after, close)) in closed.iter().enumerate() {
        assert_eq!(*close, (1001, REASON.to_owned()));
        // Each shard has half of them, and closes its first at once. A busy machine makes some late,
        // and none early.
        let due = SECONDS * index as f64 / CLIENTS as f64;
        let early = 2.0 * SECONDS / CLIENTS as f64;
        assert!((due - early..due + 2.0).contains(closed_after), "{index}: {closed_after}");
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let log = gateway.log();
    assert!(log.contains("drain: accepting no more, closing connections connections=60"), "{log}");
    assert!(log.contains("drain: done"), "{log}");
    assert!(log.contains("cut=0"), "{log}");
}

#[tokio::test]
async fn what_is_queued_for_a_client_is_sent_before_its_close() {
    const MESSAGES: usize = 400;
    let message = |number: usize| [&(number as u32).to_be_bytes()[..], &[b'.'; 32_000]].concat();
    let queue = ["--outbound-queue-bytes", "64MiB"];
    let drain = ["--shards", "1", "--drain-grace", "0s", "--drain-duration", "0s"];
    let mut gateway = Gateway::start(&[&drain[..], &queue].concat()).await;
    let mut slow = gateway.open_stalled("/channels/news").await;
    let mut publisher = gateway.connect("/channels/news?own=false").await;
    for number in 0..MESSAGES {
        publisher.send_binary(&message(number)).await;
    }
    gateway.until_metric("wsgate_deliveries_total", &[], MESSAGES as f64).await;
    let queued = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    assert!(queued > 1_000_000.0, "the kernel holds nearly everything, so this test says nothing");
    gateway.signal(Signal::TERM);
    until_not_ready(&gateway, "draining").await;
    for number in 0..MESSAGES {
        assert!(slow.read_message(BINARY).await == message(number), "message {number}");
    }
    assert_eq!(slow.read_close().await, (1001, REASON.to_owned()));
    slow.read_end().await;
    drop(publisher);
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn new_client_is_turned_away_once_the_closing_has_begun() {
    let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "60s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(gateway.open_raw("/echo").await);
    }
    gateway.signal(Signal::TERM);
    crate::support::until("new clients to be refused", async || {
        TcpStream::connect(gateway.listen).await.is_err().then_some(())
    })
    .await;
    // Those who are still open are still served.
    let last = clients.last_mut().expect("there are twenty");
    last.send_frame(BINARY, b"still here").await;
    let frame = last.read_frame().await;
    assert!([BINARY, CLOSE].contains(&frame.opcode), "{frame:?}");
    gateway.signal(Signal::TERM);
    gateway.exit().await;
}

#[tokio::test]
async fn handshake_that_is_under_way_when_the_closing_begins_is_answered_with_503() {
    let flags = ["--shards", "1", "--drain-grace", "0s", "--drain-duration", "1s"];
    let mut gateway = Gateway::start(&flags).await;
    let request = crate::support::raw::request("/echo");
    let mut undecided = crate::support::raw::RawClient::connect(gateway.listen).await;
    undecided.send(&request[..20]).await;
    gateway.until_metric("wsgate_connections_accepted_total", &[], 1.0).await;
    gateway.signal(Signal::TERM);
    crate::support::until("new clients to be refused", async || {
        TcpStream::connect(gateway.listen).await.is_err().then_some(())
    })
    .await;
    undecided.send(&request[20..]).await;
    let head = undecided.read_head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("\r\nretry-after: "), "{head}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn shard_that_has_drained_is_still_home_to_the_channels_of_clients_elsewhere() {
    let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "600s"];
    let mut gateway = Gateway::start(&flags).await;
    let channel = channel_with_home("news", 1, 2);
    let path = format!("/channels/{channel}");
    let mut one = gateway.open_raw_on_shard(0, &path).await;
    let mut other = gateway.open_raw_on_shard(0, &path).await;
    gateway.until_metric("wsgate_connections", &[], 2.0).await;
    gateway.signal(Signal::TERM);
    // One of them is closed at once, the other after five minutes. Shard 1 has nobody to close.
    let one_is_closed = tokio::select! {
        _ = one.read_close() => true,
        _ = other.read_close() => false,
    };
    let (mut closed, mut open) = if one_is_closed { (one, other) } else { (other, one) };
    closed.read_end().await;
    gateway.until_metric("wsgate_connections", &[], 1.0).await;
    let mut requests = gateway.requests().await;
    for number in 0..3 {
        open.send_frame(TEXT, format!("own {number}").as_bytes()).await;
        assert_eq!(open.read_message(TEXT).await, format!("own {number}").as_bytes());
        let data = format!("of the API {number}");
        let published = requests.call("publish", json!({ "channel": channel, "data": data })).await;
        assert_eq!(published.json(), json!({ "result": {} }));
        assert_eq!(open.read_message(TEXT).await, data.as_bytes());
        let channels = requests.call("channels", json!({})).await.json();
        assert_eq!(channels["result"]["channels"][&channel], json!({ "num_clients": 1 }));
        let node = requests.call("info", json!({})).await.json()["result"]["nodes"][0].clone();
        assert_eq!([&node["num_clients"], &node["num_subs"], &node["num_channels"]], [1, 1, 1]);
    }
    open.send_frame(CLOSE, &close_payload(1000, "")).await;
    assert_eq!(open.read_frame().await.close(), (1000, ""));
    open.read_end().await;
    // Nobody is left, so it does not wait for that.
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn gateway_without_clients_ends_as_soon_as_its_grace_is_over() {
    let flags = ["--shards", "2", "--drain-grace", "400ms", "--drain-duration", "60s"];
    let mut gateway = Gateway::start(&flags).await;
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    let took = start.elapsed();
    assert!((0.39..30.0).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test]
async fn client_that_never_answers_close_cannot_hold_up_the_end() {
    let flags = ["--shards", "1", "--drain-grace", "0s", "--drain-duration", "0s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut silent = gateway.open_raw("/echo").await;
    let mut polite = gateway.open_raw("/echo").await;
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(silent.read_frame().await.close(), (1001, REASON));
    assert_eq!(polite.read_frame().await.close(), (1001, REASON));
    polite.send_frame(CLOSE, &close_payload(1001, "")).await;
    polite.read_end().await;
    assert_eq!(gateway.exit().await.code(), Some(0));
    // The closing handshake has five seconds.
    let took = start.elapsed();
    assert!((4.9..15.0).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test]
async fn api_drains_as_sigterm_does_with_a_pace_of_its_own() {
    let flags = ["--shards", "2", "--drain-grace", "60s", "--drain-duration", "60s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut client = gateway.open_raw("/echo").await;
    let mut requests = gateway.requests().await;
    let refused = requests.call("drain", json!({ "grace": "soon" })).await;
    assert!(refused.body.contains("grace is no duration"), "{}", refused.body);
    let answer = requests.call("drain", json!({ "grace": "300ms", "duration": "0s" })).await;
    assert_eq!(answer.json(), json!({ "result": {} }));
    until_not_ready(&gateway, "draining: still accepting").await;
    let again = requests.call("drain", json!({})).await;
    assert_eq!(again.json()["error"]["code"], 409, "{}", again.body);
    let shed = requests.call("shed", json!({ "percent": 10, "duration": "1s" })).await;
    assert_eq!(shed.json()["error"]["code"], 409, "{}", shed.body);
    // An orchestrator's signal behind its own request does not cut anyone.
    gateway.signal(Signal::TERM);
    gateway.until_logged("draining already; another signal ends at once").await;
    assert_eq!(client.read_close().await, (1001, REASON.to_owned()));
    assert_eq!(gateway.exit().await.code(), Some(0));
    let log = gateway.log();
    assert!(log.contains("POST /api/drain") && log.contains("cut=0"), "{log}");
}

#[tokio::test]
async fn second_signal_ends_a_drain_of_the_api_at_once() {
    let flags = ["--shards", "2", "--drain-grace", "60s", "--drain-duration", "60s"];
    let mut gateway = Gateway::start(&flags).await;
    gateway.call("drain", json!({})).await;
    gateway.signal(Signal::TERM);
    gateway.until_logged("draining already").await;
    gateway.signal(Signal::INT);
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn shedding_closes_its_share_of_all_shards_evenly_and_serves_on() {
    const CLIENTS: usize = 100;
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut clients: Vec<RawClient> = gateway.open_many_raw("/echo", CLIENTS).await;
    let start = Instant::now();
    let mut requests = gateway.requests().await;
    let answer = requests.call("shed", json!({ "percent": 20, "duration": "4s" })).await;
    assert_eq!(answer.json(), json!({ "result": { "num_clients": 20 } }));
    let again = requests.call("shed", json!({ "percent": 20, "duration": "4s" })).await;
    assert_eq!(again.json()["error"]["code"], 409, "{}", again.body);
    let mut ends = JoinSet::new();
    for mut client in clients.drain(..) {
        ends.spawn(async move {
            let frame = client.read_frame().await;
            (start.elapsed(), frame.close().0, frame.close().1.to_owned())
        });
    }
    let mut closed = Vec::new();
    for _ in 0..20 {
        let end = ends.join_next().await.expect("a hundred came");
        closed.push(end.expect("it is read to its Close"));
    }
    closed.sort();
    for (index, (after, code, reason)) in closed.iter().enumerate() {
        assert_eq!((*code, &**reason), (1001, "please connect again, to another gateway"));
        let due = 4.0 * index as f64 / 20.0;
        assert!((due - 0.2..due + 2.0).contains(&after.as_secs_f64()), "{index}: {after:?}");
    }
    gateway.until_metric("wsgate_connections", &[], 80.0).await;
    let metrics = gateway.metrics().await;
    for shard in ["0", "1"] {
        let left = metrics.sum("wsgate_connections", &[("shard", shard)]);
        assert!((35.0..=45.0).contains(&left), "shard {shard} has {left} of 80");
    }
    assert_eq!(gateway.get("/readyz").await.status, StatusCode::OK);
    drop(gateway.connect("/echo").await);
    // Once it is over there may be another one.
    let shed = crate::support::until("the shedding to be over", async || {
        let shed = requests.call("shed", json!({ "percent": 100, "duration": "0s" })).await;
        shed.json().get("result").cloned()
    });
    assert!(shed.await["num_clients"].as_u64().is_some_and(|count| count >= 80));
    ends.abort_all();
}
