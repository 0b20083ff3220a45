//! A gateway that is told to end says so first, then lets go of its clients gently, and then ends.

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::process::Signal;
use support::gateway::Gateway;
use support::raw::{BINARY, CLOSE, close_payload};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const REASON: &str = "the gateway is draining";

async fn until_not_ready(gateway: &Gateway, reason: &str) {
    let refused = support::until("readyz to say why not", async || {
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
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
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
    support::until("new clients to be refused", async || {
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
    let request = support::raw::request("/echo");
    let mut undecided = support::raw::RawClient::connect(gateway.listen).await;
    undecided.send(&request[..20]).await;
    gateway.until_metric("wsgate_connections_accepted_total", &[], 1.0).await;
    gateway.signal(Signal::TERM);
    support::until("new clients to be refused", async || {
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
async fn gateway_without_clients_ends_as_soon_as_its_grace_is_over() {
    let flags = ["--shards", "2", "--drain-grace", "400ms", "--drain-duration", "60s"];
    let mut gateway = Gateway::start(&flags).await;
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    let took = start.elapsed();
    assert!((0.39..5.0).contains(&took.as_secs_f64()), "{took:?}");
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
