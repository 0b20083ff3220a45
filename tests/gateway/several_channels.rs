//! A connection on several channels hears each of them as if it had one connection for each, and
//! publishes to the one of its path.

use std::collections::HashMap;

use http::StatusCode;
use serde_json::json;

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{RawClient, request};

/// Channels enough that both of two shards are the home of some.
const CHANNELS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// The path of a connection that publishes to `name` and hears all of [`CHANNELS`].
fn all_from(name: &str) -> String {
    let also: Vec<String> = CHANNELS.iter().map(|channel| format!("also={channel}")).collect();
    format!("/channels/{name}?{}", also.join("&"))
}

/// What is answered to a handshake that is refused: its status and body.
async fn refusal(gateway: &Gateway, path: &str) -> (StatusCode, String) {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(&request(path)).await;
    let head = client.read_head().await;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect(&head);
    let body = String::from_utf8(client.reader.read_rest().await).expect("a body of text");
    (status, body)
}

/// The next `count` messages, by the channel that each of them names before its colon.
async fn read_by_channel(client: &mut Client, count: usize) -> HashMap<String, Vec<String>> {
    let mut heard: HashMap<String, Vec<String>> = HashMap::new();
    for _ in 0..count {
        let message = client.read_text().await;
        let (channel, text) = message.split_once(':').expect("messages have labels");
        heard.entry(channel.to_owned()).or_default().push(text.to_owned());
    }
    heard
}

#[tokio::test]
async fn each_message_of_each_channel_is_heard_once_and_in_one_order_across_shards() {
    const ROUNDS: usize = 60;
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut listeners = Vec::new();
    let mut publishers = Vec::new();
    for shard in [0, 1] {
        for name in ["a", "h"] {
            listeners.push(gateway.connect_to_shard(shard, &all_from(name)).await);
        }
        for channel in CHANNELS {
            let path = format!("/channels/{channel}?own=false");
            publishers.push((channel, shard, gateway.connect_to_shard(shard, &path).await));
        }
    }
    for round in 0..ROUNDS {
        for (channel, shard, publisher) in &mut publishers {
            publisher.send_text(&format!("{channel}:{shard} {round}")).await;
        }
    }
    let count = publishers.len() * ROUNDS;
    let first = read_by_channel(&mut listeners[0], count).await;
    assert_eq!(first.len(), CHANNELS.len());
    for heard in first.values() {
        for shard in ["0", "1"] {
            let of_shard =
                heard.iter().filter_map(|text| text.strip_prefix(shard)?.strip_prefix(' '));
            let rounds: Vec<usize> = of_shard.map(|round| round.parse().expect(round)).collect();
            assert_eq!(rounds, (0..ROUNDS).collect::<Vec<_>>(), "each once, in the order sent");
        }
    }
    for other in &mut listeners[1..] {
        assert_eq!(read_by_channel(other, count).await, first, "all hear the same order");
    }
    // What comes next is the next message: nothing came twice.
    gateway.call("broadcast", json!({ "channels": ["c"], "data": "c:end" })).await;
    for listener in &mut listeners {
        assert_eq!(listener.read_text().await, "c:end");
    }
    // Each message also goes to the other publisher on its channel, and the last one to both.
    let deliveries = count * (listeners.len() + 1) + listeners.len() + 2;
    gateway.until_metric("wsgate_deliveries_total", &[], deliveries as f64).await;
}

#[tokio::test]
async fn message_published_after_the_handshake_arrives_on_whichever_channel() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    for round in 0..20 {
        let channels: Vec<String> = (0..5).map(|number| format!("{round}-{number}")).collect();
        let also = channels[1..].join("&also=");
        let mut client = gateway.connect(&format!("/channels/{}?also={also}", channels[0])).await;
        for channel in &channels {
            gateway.call("publish", json!({ "channel": channel, "data": channel })).await;
        }
        let mut heard = Vec::new();
        for _ in &channels {
            heard.push(client.read_text().await);
        }
        heard.sort();
        assert_eq!(heard, channels);
    }
}

#[tokio::test]
async fn connection_publishes_to_the_channel_of_its_path_only() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut several = gateway.connect("/channels/main?also=side&own=false").await;
    let mut main = gateway.connect("/channels/main").await;
    let mut side = gateway.connect("/channels/side").await;
    several.send_text("to main").await;
    assert_eq!(main.read_text().await, "to main");
    main.send_text("from main").await;
    side.send_text("from side").await;
    let mut heard = [several.read_text().await, several.read_text().await];
    heard.sort();
    assert_eq!(heard, ["from main", "from side"], "not what it sent itself");
    assert_eq!(main.read_text().await, "from main");
    assert_eq!(side.read_text().await, "from side");
}

#[tokio::test]
async fn subscriptions_of_all_channels_count_and_end_with_the_connection() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let several = gateway.connect("/channels/a?also=b&also=c&also=a&also=%62").await;
    let one = gateway.connect("/channels/b").await;
    let channels = gateway.call("channels", json!({})).await;
    let counted = |name: &str| channels["channels"][name]["num_clients"].as_u64();
    assert_eq!(["a", "b", "c"].map(counted), [Some(1), Some(2), Some(1)], "{channels}");
    gateway.until_metric("wsgate_subscriptions", &[], 4.0).await;
    gateway.until_metric("wsgate_channels", &[], 3.0).await;

    drop(several);
    gateway.until_metric("wsgate_subscriptions", &[], 1.0).await;
    gateway.until_metric("wsgate_channels", &[], 1.0).await;
    drop(one);
    gateway.until_metric("wsgate_subscriptions", &[], 0.0).await;
    gateway.until_metric("wsgate_channels", &[], 0.0).await;
}

#[tokio::test]
async fn more_channels_than_allowed_are_refused_with_400_and_the_setting() {
    let flags = ["--shards", "1", "--max-channels-per-connection", "3"];
    let gateway = Gateway::start(&flags).await;
    gateway.connect("/channels/a?also=b&also=c&also=a&also=b").await;
    let (status, body) = refusal(&gateway, "/channels/a?also=b&also=c&also=d").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("names 4 channels; a connection may have 3"), "{body}");
    assert!(body.contains("max_channels_per_connection"), "{body}");
    let reason = [("reason", "bad_request")];
    gateway.until_metric("wsgate_connections_rejected_total", &reason, 1.0).await;
}

#[tokio::test]
async fn bad_further_channel_is_refused_as_a_bad_channel_is() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let also = |name: &str| format!("/channels/a?also=b&also={name}");
    let plain = |name: &str| format!("/channels/{name}");
    for name in ["", "%", "%ff", "%00", &"x".repeat(256)] {
        let expected = refusal(&gateway, &plain(name)).await;
        assert_eq!(expected.0, StatusCode::BAD_REQUEST);
        assert_eq!(refusal(&gateway, &also(name)).await, expected, "{name:?}");
    }
    gateway.until_metric("wsgate_subscriptions", &[], 0.0).await;
}
