//! What happened is what the metrics say, to the last message and byte.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::gateway::{Gateway, channel_with_home};
use crate::support::metrics::Metrics;
use crate::support::raw::{
    BINARY, CLOSE, CONTINUATION, PING, PONG, RawClient, TEXT, close_payload, encode, encode_with,
    request,
};
use crate::support::until;

/// Labels of a metric, each with every value that it may have.
type Labels = &'static [(&'static str, &'static [&'static str])];

/// Every metric of ours: its name, its kind and its labels.
const FAMILIES: [(&str, &str, Labels); 45] = [
    ("wsgate_connections", "gauge", &[("shard", &["0", "1"])]),
    ("wsgate_max_connections", "gauge", &[]),
    ("wsgate_connections_accepted_total", "counter", &[]),
    (
        "wsgate_connections_rejected_total",
        "counter",
        &[(
            "reason",
            &[
                "bad_request",
                "origin",
                "unauthorized",
                "forbidden",
                "not_found",
                "method",
                "version",
                "full",
                "draining",
                "timeout",
                "too_large",
                "disconnected",
                "overload",
                "tls",
                "address_limit",
                "address_rate",
                "handshake_rate",
                "proxy_protocol",
            ],
        )],
    ),
    (
        "wsgate_connections_closed_total",
        "counter",
        &[
            (
                "code",
                &[
                    "1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1010",
                    "1011", "1012", "1013", "1014", "3xxx", "4xxx",
                ],
            ),
            ("initiator", &["local", "remote"]),
        ],
    ),
    ("wsgate_handshakes_total", "counter", &[("http", &["1.1", "2"])]),
    ("wsgate_tls_handshakes_total", "counter", &[("version", &["1.2", "1.3"])]),
    ("wsgate_tls_reloads_total", "counter", &[("result", &["success", "failure"])]),
    ("wsgate_identified_connections", "gauge", &[]),
    (
        "wsgate_token_rejections_total",
        "counter",
        &[(
            "reason",
            &[
                "malformed",
                "algorithm",
                "unknown_key",
                "signature",
                "expired",
                "not_yet_valid",
                "audience",
                "issuer",
                "claim",
            ],
        )],
    ),
    ("wsgate_token_expirations_total", "counter", &[]),
    ("wsgate_forbidden_publications_total", "counter", &[]),
    ("wsgate_console_requests_total", "counter", &[]),
    ("wsgate_handshake_duration_seconds", "histogram", &[]),
    ("wsgate_messages_received_total", "counter", &[("kind", &["text", "binary"])]),
    ("wsgate_messages_sent_total", "counter", &[("kind", &["text", "binary"])]),
    ("wsgate_received_bytes_total", "counter", &[]),
    ("wsgate_sent_bytes_total", "counter", &[]),
    ("wsgate_publications_total", "counter", &[("source", &["connection", "api"])]),
    ("wsgate_deliveries_total", "counter", &[]),
    ("wsgate_delivery_lag_seconds", "histogram", &[]),
    (
        "wsgate_slow_consumers_total",
        "counter",
        &[("action", &["close", "drop_oldest", "drop_newest"])],
    ),
    (
        "wsgate_dropped_messages_total",
        "counter",
        &[("reason", &["close", "drop_oldest", "drop_newest"])],
    ),
    ("wsgate_outbound_queue_bytes", "gauge", &[]),
    ("wsgate_mailbox_full_total", "counter", &[]),
    ("wsgate_shard_busy_ratio", "gauge", &[("shard", &["0", "1"])]),
    ("wsgate_channels", "gauge", &[]),
    ("wsgate_subscriptions", "gauge", &[]),
    (
        "wsgate_protocol_errors_total",
        "counter",
        &[(
            "kind",
            &[
                "reserved_bits",
                "reserved_opcode",
                "unmasked_frame",
                "fragmented_control_frame",
                "control_frame_too_long",
                "length_not_minimal",
                "length_overflow",
                "unexpected_continuation",
                "interleaved_message",
                "text_not_utf8",
                "close_payload_of_one_byte",
                "close_code",
                "close_reason_not_utf8",
                "message_too_big",
                "not_deflated",
            ],
        )],
    ),
    ("wsgate_compressed_connections", "gauge", &[("mode", &["shared", "dedicated"])]),
    ("wsgate_compression_memory_bytes", "gauge", &[]),
    ("wsgate_compression_fallbacks_total", "counter", &[]),
    ("wsgate_deflate_input_bytes_total", "counter", &[]),
    ("wsgate_deflate_output_bytes_total", "counter", &[]),
    ("wsgate_inflate_input_bytes_total", "counter", &[]),
    ("wsgate_inflate_output_bytes_total", "counter", &[]),
    ("wsgate_connections_aged_total", "counter", &[]),
    (
        "wsgate_rate_limited_total",
        "counter",
        &[("limit", &["messages", "bytes"]), ("action", &["slow", "close"])],
    ),
    ("wsgate_addresses", "gauge", &[]),
    ("wsgate_panics_total", "counter", &[]),
    ("wsgate_config_reloads_total", "counter", &[("result", &["success", "failure"])]),
    ("wsgate_config_last_reload_successful", "gauge", &[]),
    ("wsgate_config_last_reload_success_timestamp_seconds", "gauge", &[]),
    ("wsgate_draining", "gauge", &[]),
    ("wsgate_build_info", "gauge", &[("version", &[env!("CARGO_PKG_VERSION")])]),
];

fn all_series(metrics: &Metrics) -> BTreeSet<String> {
    metrics.series().into_keys().collect()
}

#[tokio::test]
async fn every_metric_has_help_and_type_and_exactly_the_labels_that_are_promised() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    // Parsing it is the strict test of its form.
    let metrics = gateway.metrics().await;
    for (name, kind, labels) in FAMILIES {
        let family = metrics.families.get(name).unwrap_or_else(|| panic!("there is no {name}"));
        assert_eq!(family.kind, kind, "{name}");
        assert!(family.help.ends_with('.'), "the help of {name} is a sentence: {}", family.help);
        let mut expected: Vec<BTreeMap<String, String>> = vec![BTreeMap::new()];
        for (label, values) in labels {
            let with = |(series, value): (&BTreeMap<String, String>, &&str)| {
                let mut series = series.clone();
                series.insert((*label).to_owned(), (*value).to_owned());
                series
            };
            let pairs = expected.iter().flat_map(|series| values.iter().map(move |v| (series, v)));
            expected = pairs.map(with).collect();
        }
        if kind == "histogram" {
            continue;
        }
        let mut found: Vec<_> = family.samples.iter().map(|sample| sample.labels.clone()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{name}");
    }
    let ours = metrics.families.keys().filter(|name| name.starts_with("wsgate_"));
    let known = FAMILIES.map(|(name, ..)| name);
    let unknown: Vec<_> = ours.filter(|name| !known.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "add to FAMILIES: {unknown:?}");
    for (name, least) in [
        ("process_cpu_seconds_total", 0.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 10.0),
        ("process_max_fds", 10.0),
    ] {
        assert!(metrics.sum(name, &[]) >= least, "{name}");
    }
}

/// Counts the bytes of frames both ways, as a test writes and reads them.
#[derive(Default)]
struct Bytes {
    received: usize,
    sent: usize,
}

impl Bytes {
    async fn send(&mut self, client: &mut RawClient, frames: &[u8]) {
        client.send(frames).await;
        self.received += frames.len();
    }

    async fn expect(&mut self, client: &mut RawClient, opcode: u8, payload: &[u8]) {
        let frame = client.read_frame().await;
        assert_eq!((frame.opcode, &*frame.payload), (opcode, payload));
        self.sent += frame.bytes;
    }
}

#[tokio::test]
async fn scripted_exchange_gives_exact_values_of_every_metric() {
    // One shard, so that each publication is handed out once.
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let at_start = gateway.metrics().await;
    for (series, value) in at_start.series() {
        let may_differ = [
            "process_",
            "wsgate_build_info",
            "wsgate_max_connections",
            "wsgate_shard_busy_ratio",
            "wsgate_config_last_",
        ];
        if !may_differ.iter().any(|prefix| series.starts_with(prefix)) {
            assert_eq!(value, 0.0, "{series} before anything has happened");
        }
    }
    let mut bytes = Bytes::default();

    // Three texts (one in fragments) and two binaries, echoed; a Ping and a Pong; a Close.
    let mut client = gateway.open_raw("/echo").await;
    for (opcode, payload) in
        [(TEXT, &b"one"[..]), (TEXT, b""), (BINARY, &[0; 200]), (BINARY, &[1; 60_000])]
    {
        bytes.send(&mut client, &encode(opcode, payload)).await;
        bytes.expect(&mut client, opcode, payload).await;
    }
    let fragments = [encode_with(TEXT, b"in "), encode(PING, b"hi"), encode(CONTINUATION, b"two")];
    bytes.send(&mut client, &fragments.concat()).await;
    bytes.expect(&mut client, PONG, b"hi").await;
    bytes.expect(&mut client, TEXT, b"in two").await;
    bytes.send(&mut client, &encode(PONG, b"unasked")).await;
    bytes.send(&mut client, &encode(CLOSE, &close_payload(1000, "bye"))).await;
    bytes.expect(&mut client, CLOSE, &close_payload(1000, "")).await;
    client.read_end().await;

    // A violation: the gateway closes.
    let mut client = gateway.open_raw("/echo").await;
    bytes.send(&mut client, &encode_with(0xc1, b"RSV1")).await;
    let frame = client.read_frame().await;
    assert_eq!(frame.close().0, 1002);
    bytes.sent += frame.bytes;
    client.read_end().await;
    drop(client);

    // Three subscribers, one of whom wants none of its own: two publications of theirs, and two of
    // the API; one more to a channel that nobody hears.
    let mut one = gateway.open_raw("/channels/news").await;
    let mut two = gateway.open_raw("/channels/news").await;
    let mut three = gateway.open_raw("/channels/news?own=false").await;
    bytes.send(&mut one, &encode(TEXT, b"to three")).await;
    for client in [&mut one, &mut two, &mut three] {
        bytes.expect(client, TEXT, b"to three").await;
    }
    bytes.send(&mut three, &encode(BINARY, b"to two")).await;
    for client in [&mut one, &mut two] {
        bytes.expect(client, BINARY, b"to two").await;
    }
    gateway.call("publish", json!({ "channel": "news", "data": { "to": 3 } })).await;
    for client in [&mut one, &mut two, &mut three] {
        bytes.expect(client, TEXT, br#"{"to":3}"#).await;
    }
    let channels = ["news", "nobody"];
    gateway.call("broadcast", json!({ "channels": channels, "b64data": "AAE=" })).await;
    for client in [&mut one, &mut two, &mut three] {
        bytes.expect(client, BINARY, &[0, 1]).await;
    }
    let metrics = gateway.metrics().await;
    for (name, value) in [
        ("wsgate_connections", 3.0),
        ("wsgate_subscriptions", 3.0),
        ("wsgate_channels", 1.0),
        ("wsgate_outbound_queue_bytes", 0.0),
    ] {
        assert_eq!(metrics.sum(name, &[]), value, "{name}");
    }
    // One is told to go, one says nothing of it, and one goes by itself.
    bytes.send(&mut one, &encode(CLOSE, &close_payload(4999, ""))).await;
    bytes.expect(&mut one, CLOSE, &close_payload(4999, "")).await;
    one.read_end().await;
    drop(two);
    bytes.send(&mut three, &encode(CLOSE, b"")).await;
    bytes.expect(&mut three, CLOSE, b"").await;
    three.read_end().await;

    // Requests that are no handshake.
    for (text, status) in [
        ("GET /echo HTTP/1.1\r\nHost: gateway\r\n\r\n", "400"),
        ("GET /nothing HTTP/1.1\r\nHost: gateway\r\n\r\n", "404"),
        ("POST /echo HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n", "405"),
    ] {
        answer_to(&gateway, text.as_bytes(), status).await;
    }
    let upgrade = String::from_utf8(request("/echo")).expect("a request is ASCII");
    let other_version = upgrade.replace("Version: 13", "Version: 8");
    answer_to(&gateway, other_version.as_bytes(), "426").await;
    let elsewhere = upgrade.replace("\r\n\r\n", "\r\nOrigin: https://elsewhere.example\r\n\r\n");
    answer_to(&gateway, elsewhere.as_bytes(), "403").await;
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(b"GET /echo").await;
    drop(client);

    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    gateway.until_metric("wsgate_connections_rejected_total", &[], 6.0).await;
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    for (series, value) in [
        ("wsgate_connections_accepted_total", 11.0),
        ("wsgate_connections_rejected_total{reason=\"bad_request\"}", 1.0),
        ("wsgate_connections_rejected_total{reason=\"not_found\"}", 1.0),
        ("wsgate_connections_rejected_total{reason=\"method\"}", 1.0),
        ("wsgate_connections_rejected_total{reason=\"version\"}", 1.0),
        ("wsgate_connections_rejected_total{reason=\"origin\"}", 1.0),
        ("wsgate_connections_rejected_total{reason=\"disconnected\"}", 1.0),
        ("wsgate_connections_closed_total{code=\"1000\",initiator=\"remote\"}", 1.0),
        ("wsgate_connections_closed_total{code=\"1002\",initiator=\"local\"}", 1.0),
        ("wsgate_connections_closed_total{code=\"4xxx\",initiator=\"remote\"}", 1.0),
        ("wsgate_connections_closed_total{code=\"1006\",initiator=\"remote\"}", 1.0),
        ("wsgate_connections_closed_total{code=\"1005\",initiator=\"remote\"}", 1.0),
        ("wsgate_messages_received_total{kind=\"text\"}", 3.0 + 1.0),
        ("wsgate_messages_received_total{kind=\"binary\"}", 2.0 + 1.0),
        ("wsgate_messages_sent_total{kind=\"text\"}", 3.0 + 3.0 + 3.0),
        ("wsgate_messages_sent_total{kind=\"binary\"}", 2.0 + 2.0 + 3.0),
        ("wsgate_received_bytes_total", bytes.received as f64),
        ("wsgate_sent_bytes_total", bytes.sent as f64),
        ("wsgate_publications_total{source=\"connection\"}", 2.0),
        ("wsgate_publications_total{source=\"api\"}", 3.0),
        ("wsgate_deliveries_total", 3.0 + 2.0 + 3.0 + 3.0),
        ("wsgate_protocol_errors_total{kind=\"reserved_bits\"}", 1.0),
        ("wsgate_handshakes_total{http=\"1.1\"}", 5.0),
        ("wsgate_handshake_duration_seconds_count", 5.0),
        ("wsgate_delivery_lag_seconds_count", 4.0),
    ] {
        expected.insert(series.to_owned(), value);
    }
    let metrics = gateway.metrics().await;
    for (series, value) in metrics.series() {
        let is_time = series.contains("_seconds_bucket") || series.contains("_seconds_sum");
        let is_config = series.starts_with("wsgate_config_last_");
        if series.starts_with("process_") || is_time || is_config {
            continue;
        }
        match series.split('{').next() {
            Some("wsgate_shard_busy_ratio") => assert!((0.0..=1.0).contains(&value), "{value}"),
            Some("wsgate_build_info") => assert_eq!(value, 1.0),
            Some("wsgate_max_connections") => assert!(value > 0.0),
            _ => assert_eq!(value, expected.remove(&series).unwrap_or(0.0), "{series}"),
        }
    }
    assert!(expected.is_empty(), "never seen: {expected:?}");
    assert_eq!(all_series(&metrics), all_series(&at_start), "no label tells what clients did");
}

/// Sends an HTTP request and demands an answer with this status.
async fn answer_to(gateway: &Gateway, request: &[u8], status: &str) {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(request).await;
    let head = client.read_head().await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    client.reader.read_rest().await;
}

#[tokio::test]
async fn counters_never_go_back_and_scrapes_change_nothing() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let counters = |metrics: Metrics| -> BTreeMap<String, f64> {
        let counters = metrics
            .families
            .into_iter()
            .filter(|(name, family)| family.kind == "counter" && name.starts_with("wsgate_"));
        let samples = counters.flat_map(|(_, family)| family.samples);
        samples
            .map(|sample| (format!("{} {:?}", sample.name, sample.labels), sample.value))
            .collect()
    };
    let mut before = counters(gateway.metrics().await);
    for _ in 0..5 {
        let mut client = gateway.open_raw("/channels/news").await;
        client.send_frame(TEXT, b"hello").await;
        client.read_message(TEXT).await;
        drop(client);
        gateway.until_metric("wsgate_connections", &[], 0.0).await;
        let after = counters(gateway.metrics().await);
        assert!(before.iter().all(|(series, value)| after[series] >= *value));
        assert_ne!(before, after);
        assert_eq!(after, counters(gateway.metrics().await));
        before = after;
    }
}

#[tokio::test]
async fn each_shards_connections_are_told_apart_and_add_up() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut clients = Vec::new();
    let mut expected = [0.0; 2];
    for _ in 0..20 {
        let client = gateway.connect("/echo").await;
        expected[client.shard()] += 1.0;
        clients.push(client);
    }
    for (shard, expected) in ["0", "1"].into_iter().zip(expected) {
        gateway.until_metric("wsgate_connections", &[("shard", shard)], expected).await;
    }
}

/// A delay that no publication has by itself, however busy the machine is that runs this test.
const DELAY: Duration = Duration::from_millis(300);

/// The longest bound of a bucket below [`DELAY`].
const BELOW_DELAY: [(&str, &str); 1] = [("le", "0.25")];

async fn until_passed(start: Instant, time: Duration) {
    until("time to pass", async || (start.elapsed() > time).then_some(())).await;
}

#[tokio::test]
async fn delivery_lag_is_counted_for_each_batch_and_each_shard_that_delivers_it() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let channels = [0, 1].map(|home| channel_with_home("news", home, 2));
    let mut subscribers = Vec::new();
    for (channel, shard) in [(&channels[0], 0), (&channels[0], 1), (&channels[1], 1)] {
        let path = format!("/channels/{channel}");
        // Two on each of these shards: they make no difference.
        subscribers.push(gateway.open_raw_on_shard(shard, &path).await);
        subscribers.push(gateway.open_raw_on_shard(shard, &path).await);
    }
    let mut expected = 0.0;
    for (channel, shards) in [(&channels[0], 2.0), (&channels[1], 1.0), (&"no".to_owned(), 0.0)] {
        for _ in 0..5 {
            gateway.call("publish", json!({ "channel": channel, "data": "one batch" })).await;
            expected += shards;
            let count = "wsgate_delivery_lag_seconds_count";
            gateway.until_metric(count, &[], expected).await;
        }
    }
}

#[tokio::test]
async fn delivery_lag_shows_how_long_publications_waited_for_their_shard() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut news = gateway.open_raw("/channels/news").await;
    let mut sport = gateway.open_raw("/channels/sport").await;
    gateway.call("publish", json!({ "channel": "news", "data": "at once" })).await;
    news.read_message(TEXT).await;
    gateway.until_metric("wsgate_delivery_lag_seconds_count", &[], 1.0).await;
    let before = gateway.metrics().await;

    let start = Instant::now();
    let frozen = gateway.freeze(0);
    for channel in ["news", "sport", "nobody", "news"] {
        gateway.call("publish", json!({ "channel": channel, "data": "late" })).await;
    }
    let published = Instant::now();
    until_passed(published, DELAY).await;
    let shortest = published.elapsed();
    frozen.thaw();
    for (client, messages) in [(&mut news, 2), (&mut sport, 1)] {
        for _ in 0..messages {
            client.read_message(TEXT).await;
        }
    }
    // What waits together is delivered together: one batch for each channel with a subscriber.
    let name = |suffix| format!("wsgate_delivery_lag_seconds_{suffix}");
    gateway.until_metric(&name("count"), &[], before.sum(&name("count"), &[]) + 2.0).await;
    let longest = start.elapsed();
    let after = gateway.metrics().await;
    let added =
        |suffix, labels| after.sum(&name(suffix), labels) - before.sum(&name(suffix), labels);
    assert_eq!(added("bucket", &BELOW_DELAY), 0.0, "nothing was that quick");
    let mean = Duration::from_secs_f64(added("sum", &[]) / 2.0);
    assert!((shortest..=longest).contains(&mean), "{mean:?} is not in {shortest:?}..={longest:?}");
}

#[tokio::test]
async fn mailbox_is_counted_as_full_when_it_is_and_what_waits_behind_it_shows_as_lag() {
    const ENTRIES: usize = 16;
    let entries = ENTRIES.to_string();
    let gateway = Gateway::start(&["--shards", "2", "--mailbox-entries", &entries]).await;
    let path = format!("/channels/{}", channel_with_home("news", 1, 2));
    let mut subscriber = gateway.open_raw_on_shard(1, &path).await;
    let quiet = format!("{path}?own=false");
    let mut publisher = gateway.open_raw_on_shard(0, &quiet).await;
    let full = async || gateway.metrics().await.sum("wsgate_mailbox_full_total", &[]);
    let mut published = 0;
    for _ in 0..3 {
        let full_before = full().await;
        let frozen = gateway.freeze(1);
        for _ in 0..ENTRIES {
            publisher.send_frame(TEXT, b"there is room").await;
            published += 1;
            let publications = "wsgate_publications_total";
            gateway.until_metric(publications, &[], published as f64).await;
            assert_eq!(full().await, full_before, "after {published}");
        }
        publisher.send_frame(TEXT, b"there is none").await;
        published += 1;
        gateway.until_metric("wsgate_mailbox_full_total", &[], full_before + 1.0).await;
        // It was full once, however long it is and whatever comes after that.
        publisher.send_frame(TEXT, b"nobody reads this now").await;
        published += 1;
        let before = gateway.metrics().await;
        until_passed(Instant::now(), DELAY).await;
        assert_eq!(full().await, full_before + 1.0);
        frozen.thaw();
        for _ in 0..ENTRIES + 2 {
            subscriber.read_message(TEXT).await;
        }
        // Only the last one came in when there was room again; each shard hands it out once.
        let name = |suffix| format!("wsgate_delivery_lag_seconds_{suffix}");
        until("the late batches to be counted", async || {
            let after = gateway.metrics().await;
            let added = |suffix, labels| {
                after.sum(&name(suffix), labels) - before.sum(&name(suffix), labels)
            };
            let late = added("count", &[]) - added("bucket", &BELOW_DELAY);
            assert!(added("bucket", &BELOW_DELAY) <= 2.0);
            (late >= 1.0 && added("sum", &[]) >= DELAY.as_secs_f64() * late).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn shard_under_full_load_is_busy_and_the_other_one_is_not() {
    const SHARDS: [[(&str, &str); 1]; 2] = [[("shard", "0")], [("shard", "1")]];
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let ratios = async || {
        let metrics = gateway.metrics().await;
        SHARDS.map(|shard| metrics.sum("wsgate_shard_busy_ratio", &shard))
    };
    // The smallest messages cost a shard most, and whoever sends them least.
    let frames = encode(BINARY, b"x").repeat(10_000);
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(gateway.open_raw_on_shard(0, "/echo").await);
    }
    let mut load = JoinSet::new();
    for RawClient { mut writer, mut reader } in clients {
        let frames = frames.clone();
        load.spawn(async move { while writer.write_all(&frames).await.is_ok() {} });
        load.spawn(async move { while reader.discard().await > 0 {} });
    }
    until("one shard to be busy and the other one idle", async || {
        let [loaded, idle] = ratios().await;
        assert!(loaded <= 1.0 && idle <= 1.0);
        (loaded > 0.5 && idle < 0.2).then_some(())
    })
    .await;
    load.shutdown().await;
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    until("both shards to be idle", async || {
        ratios().await.iter().all(|ratio| *ratio < 0.2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn outbound_queues_hold_what_was_delivered_and_not_written_to_the_byte() {
    let gateway = Gateway::start(&["--shards", "1", "--outbound-queue-bytes", "4MiB"]).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        stalled.push(gateway.open_narrow("/channels/news").await);
    }
    let mut publisher = gateway.open_raw("/channels/news?own=false").await;
    let mut frame_bytes = 0;
    let payloads: Vec<Vec<u8>> = [3, 200, 20_000, 4_000, 70]
        .iter()
        .cycle()
        .take(200)
        .map(|bytes| vec![b'x'; *bytes])
        .collect();
    for payload in &payloads {
        publisher.send_frame(BINARY, payload).await;
        frame_bytes += encode(BINARY, payload).len() - 4;
    }
    let deliveries = stalled.len() * payloads.len();
    gateway.until_metric("wsgate_deliveries_total", &[], deliveries as f64).await;
    let queued = "wsgate_outbound_queue_bytes";
    // The kernel still takes a little now and then, so both are of one moment.
    let both = until("the queues to hold the rest", async || {
        let metrics = gateway.metrics().await;
        let (waiting, sent) =
            (metrics.sum(queued, &[]), metrics.sum("wsgate_sent_bytes_total", &[]));
        (waiting + sent == (stalled.len() * frame_bytes) as f64).then_some(waiting)
    })
    .await;
    assert!(both > frame_bytes as f64, "the kernel took nearly all, so this test says nothing");

    // One reads everything, the other one goes: nothing is left of either.
    let mut gone = stalled.pop().expect("there are two");
    let mut read_bytes = 0;
    for payload in &payloads {
        let frame = gone.read_frame().await;
        assert_eq!(frame.payload, *payload);
        read_bytes += frame.bytes;
    }
    assert_eq!(read_bytes, frame_bytes);
    until("the queue of the other one to be all that is left", async || {
        let metrics = gateway.metrics().await;
        let (waiting, sent) =
            (metrics.sum(queued, &[]), metrics.sum("wsgate_sent_bytes_total", &[]));
        (waiting > 0.0 && waiting + sent == (2 * frame_bytes) as f64).then_some(())
    })
    .await;
    stalled.clear();
    gateway.until_metric(queued, &[], 0.0).await;
}
