//! A publisher that is faster than those it publishes to is slowed, and no more than that: nothing is
//! lost, nobody else waits, and nothing stands still for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::StatusCode;
use serde_json::json;
use tokio::task::{JoinSet, yield_now};

use crate::support::admin::Requests;
use crate::support::gateway::{Gateway, channel_with_home};
use crate::support::raw::{FrameReader, RawClient, TEXT};
use crate::support::sequence::{self, Heard, frame_bytes, frames};
use crate::support::{until, within};

/// Has `reader` read until it has heard `count` messages, each publisher's from its first one on.
async fn hear_all(reader: &mut FrameReader, count: usize) -> Heard {
    let mut heard = Heard::default();
    while heard.messages < count {
        let frame = reader.read_frame().await;
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        heard.next_from_the_first(&frame.payload);
    }
    heard
}

/// Publishes a message by the API until it is taken, and returns how often it was refused.
async fn publish_by_api(requests: &mut Requests, channel: &str, text: &str) -> usize {
    let mut refused = 0;
    loop {
        let parameters = json!({ "channel": channel, "data": text });
        let answer = requests.call("publish", parameters).await;
        match answer.status {
            StatusCode::OK => return refused,
            StatusCode::SERVICE_UNAVAILABLE => {
                assert_eq!(answer.header("retry-after"), Some("1"));
                refused += 1;
                yield_now().await;
            }
            other => panic!("{other}: {}", answer.body),
        }
    }
}

#[tokio::test]
async fn publisher_that_outruns_a_shard_is_not_read_until_that_shard_goes_on_and_loses_nothing() {
    const MESSAGE_BYTES: usize = 4_000;
    /// Far more than lanes, a turn and the sockets hold.
    const MESSAGES: u32 = 16_000;
    let lanes = ["--mailbox-entries", "16", "--mailbox-bytes", "256KiB"];
    let queue = ["--outbound-queue-bytes", "256MiB"];
    let gateway = Gateway::start(&[&["--shards", "2"], &lanes[..], &queue].concat()).await;
    let mut echo = gateway.connect_to_shard(0, "/echo").await;
    let frames = frames(7, MESSAGES, MESSAGE_BYTES);
    // Either the publications or the deliveries have to wait.
    for home in [0, 1] {
        let path = format!("/channels/{}", channel_with_home("news", home, 2));
        let mut beside = gateway.open_raw_on_shard(0, &path).await;
        let mut behind = gateway.open_raw_on_shard(1, &path).await;
        let quiet = format!("{path}?own=false");
        let mut publisher = gateway.open_raw_on_shard(0, &quiet).await;
        let full_before = gateway.metrics().await.sum("wsgate_mailbox_full_total", &[]);

        let frozen = gateway.freeze(1);
        let sent = publisher.send_until_full(&frames, frames.len() - 1).await;
        let metrics = gateway.metrics().await;
        assert!(metrics.sum("wsgate_mailbox_full_total", &[]) > full_before);
        // Its shard has time for everyone else.
        echo.send_text("still quick").await;
        assert_eq!(echo.read_text().await, "still quick");

        frozen.thaw();
        let rest = &frames[sent..];
        let more = frames.len() / 4;
        assert!(rest.len() > more, "all of it found room, so this test says nothing");
        let frame_bytes = frame_bytes(MESSAGE_BYTES);
        let end = (sent + more).next_multiple_of(frame_bytes);
        let count = end / frame_bytes;
        let (_, one, other) = tokio::join!(
            publisher.send(&frames[sent..end]),
            hear_all(&mut beside.reader, count),
            hear_all(&mut behind.reader, count),
        );
        assert_eq!((one.messages, other.messages), (count, count));
        let metrics = gateway.metrics().await;
        assert_eq!(metrics.sum("wsgate_dropped_messages_total", &[]), 0.0);
    }
}

#[tokio::test]
async fn api_publish_is_refused_while_the_mailbox_is_full_and_taken_when_it_is_not() {
    const ENTRIES: u32 = 16;
    const REFUSED: usize = 5;
    let gateway =
        Gateway::start(&["--shards", "1", "--mailbox-entries", &ENTRIES.to_string()]).await;
    let mut subscriber = gateway.open_raw("/channels/news").await;
    let mut requests = gateway.requests().await;
    let mut total_refused = 0;
    let parameters = |number| json!({ "channel": "news", "data": sequence::text(0, number, 100) });
    for round in 0..3 {
        let first = round * (ENTRIES + 1);
        let frozen = gateway.freeze(0);
        for number in first..first + ENTRIES {
            let answer = requests.call("publish", parameters(number)).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        }
        for _ in 0..REFUSED {
            let answer = requests.call("publish", parameters(first + ENTRIES)).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert_eq!(answer.json()["error"]["code"], 108, "{}", answer.body);
        }
        frozen.thaw();
        let last = sequence::text(0, first + ENTRIES, 100);
        let refused = publish_by_api(&mut requests, "news", &last).await;
        for number in first..=first + ENTRIES {
            let expected = sequence::text(0, number, 100);
            assert_eq!(subscriber.read_message(TEXT).await, expected.as_bytes());
        }
        // The metric says so too, to the last one.
        let full = gateway.metrics().await.sum("wsgate_mailbox_full_total", &[]);
        total_refused += REFUSED + refused;
        assert_eq!(full, total_refused as f64);
    }
}

/// What everybody in [`publish_to_each_other`] shares.
struct Scene {
    gateway: Gateway,
    shards: u16,
    /// By home: channels on which a connection on each shard subscribes and publishes.
    meshed: Vec<String>,
    /// By home: channels on which only the API publishes, with one subscriber that stays. So shards
    /// enter and leave the directory with every one that does not.
    directed: Vec<String>,
    publishing_is_over: AtomicBool,
    visits: AtomicUsize,
}

const MESSAGES: u32 = 400;
const MESSAGE_BYTES: usize = 1_000;
const API_PUBLISHERS: u32 = 2;
const API_MESSAGES: u32 = 60;

/// On the channel of the one that does not read: more than its queue and sockets hold.
const FLOOD_BYTES: usize = 12 << 20;
const FLOOD_MESSAGE_BYTES: usize = 4_000;

/// Of one connection's outbound queue: everything on any other channel fits, so that only the one
/// that does not read can lose something.
const QUEUE_BYTES: usize = 8 << 20;

/// How many messages a visitor hears before it goes.
const VISIT: usize = 20;

/// Publishers on every shard to channels with their homes on every shard, at full rate, by mailboxes
/// that hold next to nothing; the API beside them; subscribers that come and go; one that does not
/// read; and shards that stand still now and then.
async fn publish_to_each_other(shards: u16) {
    let (count, queue) = (shards.to_string(), QUEUE_BYTES.to_string());
    let gateway = Gateway::start(&[
        "--shards",
        &count,
        "--max-message-bytes",
        "4KiB",
        "--mailbox-entries",
        "16",
        "--mailbox-bytes",
        "8KiB",
        "--slow-consumer",
        "drop-oldest",
        "--outbound-queue-bytes",
        &queue,
    ])
    .await;
    let homes = 0..usize::from(shards);
    let named = |prefix: &'static str| {
        homes.clone().map(move |home| channel_with_home(prefix, home, shards))
    };
    let scene = Arc::new(Scene {
        gateway,
        shards,
        meshed: named("meshed").collect(),
        directed: named("directed").collect(),
        publishing_is_over: AtomicBool::new(false),
        visits: AtomicUsize::new(0),
    });
    let gateway = &scene.gateway;
    let by_api = (API_PUBLISHERS * API_MESSAGES) as usize;

    // Whoever publishes begins when all who stay are there.
    let mut staying = Vec::new();
    // Each hears everything on its channel, its own included.
    for (publisher, (channel, shard)) in pairs(&scene.meshed, shards).enumerate() {
        let client = gateway.open_raw_on_shard(shard, &format!("/channels/{channel}")).await;
        let frames = frames(publisher as u32, MESSAGES, MESSAGE_BYTES);
        let all = usize::from(shards) * MESSAGES as usize + by_api;
        staying.push((client, frames, all));
    }
    for (home, channel) in scene.directed.iter().enumerate() {
        let shard = (home + 1) % usize::from(shards);
        let client = gateway.open_raw_on_shard(shard, &format!("/channels/{channel}")).await;
        staying.push((client, Vec::new(), by_api));
    }
    let mut stalled = gateway.open_narrow("/channels/flood").await;
    let flooders = u32::from(shards);
    let flood_messages = (FLOOD_BYTES / FLOOD_MESSAGE_BYTES) as u32 / flooders;
    for flooder in 0..flooders {
        let path = "/channels/flood?own=false";
        let client = gateway.open_raw_on_shard(flooder as usize, path).await;
        let frames = frames(1_000 + flooder, flood_messages, FLOOD_MESSAGE_BYTES);
        let others = ((flooders - 1) * flood_messages) as usize;
        staying.push((client, frames, others));
    }

    let mut publishing: JoinSet<()> = JoinSet::new();
    let mut hearing: JoinSet<RawClient> = JoinSet::new();
    for (client, frames, count) in staying {
        publish_and_hear(&mut publishing, &mut hearing, client, frames, count);
    }
    for publisher in 0..API_PUBLISHERS {
        let scene = Arc::clone(&scene);
        publishing.spawn(async move {
            let mut requests = scene.gateway.requests().await;
            for number in 0..API_MESSAGES {
                let text = sequence::text(2_000 + publisher, number, MESSAGE_BYTES);
                for channel in scene.meshed.iter().chain(&scene.directed) {
                    publish_by_api(&mut requests, channel, &text).await;
                }
            }
        });
    }
    let mut visiting = JoinSet::new();
    for visitor in 0..4 {
        visiting.spawn(come_and_go(Arc::clone(&scene), visitor));
    }

    freeze_each_in_turn(&scene, &mut publishing).await;
    within("the end of publishing", async { while publishing.join_next().await.is_some() {} })
        .await;
    scene.publishing_is_over.store(true, Ordering::Relaxed);
    let permanent = within("everybody to hear everything", hearing.join_all()).await;
    visiting.join_all().await;
    assert!(scene.visits.load(Ordering::Relaxed) > 0, "nobody came and went");

    let published = scene.meshed.len() as u32 * u32::from(shards) * MESSAGES
        + flooders * flood_messages
        + 2 * u32::from(shards) * API_PUBLISHERS * API_MESSAGES;
    gateway.until_metric("wsgate_publications_total", &[], f64::from(published)).await;
    let metrics = gateway.metrics().await;
    let full = metrics.sum("wsgate_mailbox_full_total", &[]);
    assert!(full > 0.0, "the bound was never reached, so this test says nothing");
    // Whatever was lost was lost by the one that does not read, and is counted.
    let dropped = metrics.sum("wsgate_dropped_messages_total", &[]) as usize;
    assert!(dropped > 0, "nobody was too slow, so this test says nothing");
    let mut heard = Heard::default();
    while heard.messages < (flooders * flood_messages) as usize - dropped {
        heard.later(&stalled.read_message(TEXT).await);
    }
    gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
    drop(permanent);
}

/// Each of `channels` with each shard.
fn pairs(channels: &[String], shards: u16) -> impl Iterator<Item = (&String, usize)> {
    channels
        .iter()
        .flat_map(move |channel| (0..usize::from(shards)).map(move |shard| (channel, shard)))
}

/// Has `client` send `frames` as fast as it can, and meanwhile hear `count` messages.
fn publish_and_hear(
    publishing: &mut JoinSet<()>,
    hearing: &mut JoinSet<RawClient>,
    client: RawClient,
    frames: Vec<u8>,
    count: usize,
) {
    let RawClient { mut writer, mut reader } = client;
    let (sent, is_sent) = tokio::sync::oneshot::channel();
    publishing.spawn(async move {
        let written = tokio::io::AsyncWriteExt::write_all(&mut writer, &frames);
        within("messages to be sent", written).await.expect("the gateway has not let go");
        _ = sent.send(writer);
    });
    hearing.spawn(async move {
        hear_all(&mut reader, count).await;
        // Kept open: closing over unread messages is a reset, which takes back what was sent.
        RawClient { writer: is_sent.await.expect("it is sent"), reader }
    });
}

/// Subscribes to one channel after the other, on whichever shard, hears a few messages on each and
/// goes away over the rest.
async fn come_and_go(scene: Arc<Scene>, visitor: usize) {
    let channels: Vec<&String> = scene.meshed.iter().chain(&scene.directed).collect();
    for visit in visitor.. {
        if scene.publishing_is_over.load(Ordering::Relaxed) {
            return;
        }
        let path = format!("/channels/{}", channels[visit % channels.len()]);
        let mut client = scene.gateway.open_raw(&path).await;
        let mut heard = Heard::default();
        while heard.messages < VISIT && !scene.publishing_is_over.load(Ordering::Relaxed) {
            let look = std::time::Duration::from_millis(50);
            // On a channel on which all is said it hears nothing.
            let Ok(frame) = tokio::time::timeout(look, client.read_frame()).await else {
                break;
            };
            heard.next(&frame.payload);
        }
        scene.visits.fetch_add(usize::from(heard.messages > 0), Ordering::Relaxed);
    }
}

/// Has each shard stand still, twice, until some mailbox is full or all is published.
async fn freeze_each_in_turn(scene: &Scene, publishing: &mut JoinSet<()>) {
    let full = async || scene.gateway.metrics().await.sum("wsgate_mailbox_full_total", &[]);
    for shard in (0..usize::from(scene.shards)).cycle().take(2 * usize::from(scene.shards)) {
        let before = full().await;
        let _frozen = scene.gateway.freeze(shard);
        until("a mailbox to be full", async || {
            while publishing.try_join_next().is_some() {}
            (publishing.is_empty() || full().await > before).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn two_shards_that_publish_to_each_other_at_full_rate_block_nobody_and_lose_nothing() {
    publish_to_each_other(2).await;
}

#[tokio::test]
async fn four_shards_that_publish_to_each_other_at_full_rate_block_nobody_and_lose_nothing() {
    publish_to_each_other(4).await;
}
