//! Each test is named after something that went wrong once.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::gateway::{Gateway, channel_with_home};
use crate::support::raw::{BINARY, CLOSE, CONTINUATION, PING, RawClient, TEXT, encode, request};
use crate::support::until;

/// The drain kept the sockets of all connections until the last Close was sent.
#[tokio::test]
async fn drained_connection_ends_with_its_own_closing_handshake_not_with_the_last_one() {
    let flags = ["--shards", "1", "--drain-grace", "0s", "--drain-duration", "4s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(gateway.open_raw("/echo").await);
    }
    gateway.signal(Signal::TERM);
    let mut closing = JoinSet::new();
    for mut client in clients {
        closing.spawn(async move {
            client.read_close().await;
            let answered_at = Instant::now();
            client.read_end().await;
            (answered_at, Instant::now())
        });
    }
    let mut ends = closing.join_all().await;
    ends.sort();
    let [(_, first_end), .., (last_answer, _)] = ends[..] else { panic!("four clients") };
    assert!(first_end < last_answer, "the first socket was held until the last Close");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

/// A subscriber with a backlog was not pinged, and what it read was no sign of life.
#[tokio::test]
async fn subscriber_that_lags_but_reads_is_not_idle() {
    let flags = ["--shards", "1", "--ping-interval", "200ms", "--idle-timeout", "1s"];
    let gateway =
        Gateway::start(&[&flags[..], &["--outbound-queue-bytes", "64MiB"]].concat()).await;
    let mut reader = gateway.open_stalled("/channels/news").await;
    const MESSAGES: usize = 1_000;
    let publish = async {
        let mut publisher = gateway.connect("/channels/news?own=false").await;
        let text = ".".repeat(32 * 1024);
        for _ in 0..MESSAGES {
            publisher.send_text(&text).await;
        }
    };
    // Three times the idle timeout, with a backlog at every moment of it.
    let read = async {
        let (start, mut messages) = (Instant::now(), 0);
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while start.elapsed() < Duration::from_secs(3) {
            ticks.tick().await;
            let frame = reader.read_frame().await;
            assert_ne!(frame.opcode, CLOSE, "closed after {messages} messages");
            messages += usize::from(frame.opcode != PING);
        }
        messages
    };
    let ((), messages) = tokio::join!(publish, read);
    assert!(messages < MESSAGES, "it lagged until the end");
    let waiting = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    assert!(waiting > 0.0, "something waited until the end");
}

/// What the gateway answered to control messages had no bound on a channel.
#[tokio::test]
async fn control_messages_of_a_client_that_never_reads_are_not_read_beyond_its_bound() {
    const QUEUE_BYTES: f64 = 70.0 * 1024.0;
    let gateway = Gateway::start(&["--shards", "1", "--outbound-queue-bytes", "70KiB"]).await;
    for path in ["/channels/news?control=true", "/echo?control=true"] {
        let mut attacker = gateway.open_stalled(path).await;
        let flood = encode(TEXT, br#"{"refresh":0}"#).repeat(1_000);
        let attack = tokio::spawn(async move {
            loop {
                attacker.send(&flood).await;
            }
        });
        let queued = async || gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
        until("its queue to fill", async || (queued().await >= QUEUE_BYTES / 2.0).then_some(()))
            .await;
        let mut other = gateway.connect("/echo").await;
        for _ in 0..300 {
            other.send_text("still served").await;
            assert_eq!(other.read_text().await, "still served");
            let queued = queued().await;
            assert!(queued <= QUEUE_BYTES, "{queued} bytes wait on {path}");
        }
        attack.abort();
        drop(other);
        gateway.until_metric("wsgate_connections", &[], 0.0).await;
    }
}

/// A connection that ended with a full queue was written to again by the drain, and its bytes were
/// taken off the gauge twice.
#[tokio::test]
async fn outbound_queue_gauge_is_back_at_zero_after_a_blocked_connection_has_ended() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut stalled = gateway.open_stalled("/channels/news").await;
    let text = ".".repeat(32 * 1024);
    for _ in 0..1_000 {
        gateway.call("publish", json!({ "channel": "news", "data": text })).await;
        if gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]) > 0.0 {
            break;
        }
    }
    assert!(gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]) > 0.0);
    // A continuation of nothing: the connection is failed with its queue full.
    stalled.send(&encode(CONTINUATION, b"")).await;
    gateway.until_metric("wsgate_protocol_errors_total", &[], 1.0).await;
    stalled.reset();
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
}

/// Frames that the socket had taken already were counted as dropped.
#[tokio::test]
async fn slow_consumer_that_is_closed_misses_exactly_what_is_counted_as_dropped() {
    // Each turn's batch of many small messages overflows a queue that is nearly as small as one.
    let flags = ["--shards", "1", "--max-message-bytes", "1KiB", "--outbound-queue-bytes", "2KiB"];
    let gateway = Gateway::start(&flags).await;
    let mut stalled = gateway.open_stalled("/channels/news").await;
    let mut publisher = gateway.open_raw("/channels/news?own=false").await;
    let batch = encode(BINARY, &[b'.'; 500]).repeat(16);
    let is_tripped = async || {
        gateway.metrics().await.sum("wsgate_slow_consumers_total", &[("action", "close")]) > 0.0
    };
    while !is_tripped().await {
        publisher.send(&batch).await;
    }
    let mut received = 0;
    let close = loop {
        let frame = stalled.read_frame().await;
        if frame.opcode == CLOSE {
            break frame.close().0;
        }
        received += 1;
    };
    assert_eq!(close, 1008);
    let metrics = gateway.metrics().await;
    let sent = metrics.sum("wsgate_messages_sent_total", &[]);
    let dropped = metrics.sum("wsgate_dropped_messages_total", &[]);
    assert_eq!(sent - dropped, f64::from(received));
}

/// A shard that was late looked at the deadline first and at the socket afterwards: it answered with 408,
/// or with a reset that overtook the 408, a handshake that had arrived whole and in time.
#[tokio::test]
async fn handshake_that_arrived_in_time_is_answered_by_a_shard_that_was_late() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let gateway = Gateway::start(&["--shards", "1", "--handshake-timeout", "300ms"]).await;
    let mut client = RawClient::connect(gateway.listen).await;
    gateway.until_metric("wsgate_connections_accepted_total", &[], 1.0).await;
    let frozen = gateway.freeze(0);
    client.send(&request("/echo")).await;
    let sent_at = Instant::now();
    until("the deadline to pass while the request lies there", async || {
        (sent_at.elapsed() > 2 * TIMEOUT).then_some(())
    })
    .await;
    drop(frozen);
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

/// It answered from the counters at once, and left out a client that had its 101 and was not counted yet.
#[tokio::test]
async fn info_waits_for_each_shard_to_count_whom_it_has_let_in() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let _client = gateway.open_raw("/channels/news").await;
    let mut requests = gateway.requests().await;
    let frozen = gateway.freeze(1);
    let answer = requests.call("info", json!({})).await;
    assert_eq!(answer.json()["error"]["code"], 108, "{}", answer.body);
    frozen.thaw();
    let node = &gateway.call("info", json!({})).await["nodes"][0];
    assert_eq!([&node["num_clients"], &node["num_subs"], &node["num_channels"]], [1, 1, 1]);
}

/// It answered 503, "try again", and was sent all the same when the shard went on: twice in the end.
#[tokio::test]
async fn what_the_api_was_told_to_send_again_is_sent_once() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut client = RawClient::connect(gateway.listen).await;
    let id = client.upgrade("/echo").await;
    let mut requests = gateway.requests().await;
    let frozen = gateway.freeze(0);
    let send = json!({ "connection": id, "data": "once" });
    let refused = requests.call("send", send.clone()).await;
    assert_eq!(refused.json()["error"]["code"], 108, "{}", refused.body);
    let shed = requests.call("shed", json!({ "percent": 100, "duration": "1s" })).await;
    assert_eq!(shed.json()["error"]["code"], 108, "{}", shed.body);
    frozen.thaw();
    assert_eq!(requests.call("send", send).await.json(), json!({ "result": {} }));
    assert_eq!(client.read_message(TEXT).await, b"once");
    // Neither a second one nor a Close comes before this.
    client.send_frame(TEXT, b"echo").await;
    assert_eq!(client.read_message(TEXT).await, b"echo");
}

/// It was told as done when it had only been asked for.
#[tokio::test]
async fn reload_is_told_when_every_shard_goes_by_it() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let frozen = gateway.freeze(0);
    gateway.signal(Signal::HUP);
    gateway.until_logged("configuration reloaded").await;
    let log = gateway.log();
    let (waited, told) = (log.find("a shard does not turn"), log.find("configuration reloaded"));
    assert!(waited.is_some() && waited < told, "{log}");
    frozen.thaw();
    gateway.signal(Signal::HUP);
    gateway.until_metric("wsgate_config_reloads_total", &[], 2.0).await;
}

/// They were published however full the mailbox was.
#[tokio::test]
async fn frames_behind_the_request_wait_for_a_congested_channel_like_all_others() {
    const ENTRIES: u32 = 16;
    let entries = ENTRIES.to_string();
    let flags = ["--shards", "2", "--mailbox-entries", &entries];
    let gateway = Gateway::start(&flags).await;
    let path = format!("/channels/{}?own=false", channel_with_home("news", 1, 2));
    let mut publisher = gateway.open_raw_on_shard(0, &path).await;
    let mut hearer = gateway.open_raw_on_shard(0, &path).await;
    let sum = async |name| gateway.metrics().await.sum(name, &[]);
    let frozen = gateway.freeze(1);
    // The last finds the mailbox full.
    for count in 1..=ENTRIES + 1 {
        publisher.send_frame(TEXT, b"before").await;
        gateway.until_metric("wsgate_publications_total", &[], f64::from(count)).await;
    }
    let received = sum("wsgate_received_bytes_total").await;
    let early = [request(&path), encode(TEXT, b"early")].concat();
    // The kernel gives some of them to the shard that stands still.
    let mut others = Vec::new();
    until("one of them to have come in", async || {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(&early).await;
        others.push(client);
        (sum("wsgate_received_bytes_total").await > received).then_some(())
    })
    .await;
    assert_eq!(sum("wsgate_publications_total").await, f64::from(ENTRIES + 1), "it waits");
    frozen.thaw();
    let mut late = 0;
    for _ in 0..=ENTRIES as usize + others.len() {
        late += usize::from(hearer.read_message(TEXT).await == b"early");
    }
    assert_eq!(late, others.len(), "and nothing is lost");
}
