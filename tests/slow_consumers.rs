//! A client that reads slowly, or never, harms itself at most.

mod support;

use std::time::Instant;

use support::client::{Client, connect_many};
use support::gateway::Gateway;
use support::raw::{
    BINARY, CLOSE, CONTINUATION, PING, PONG, RawClient, close_payload, encode, encode_with,
};

const MESSAGE_BYTES: usize = 4_096;

/// Few enough that a reader's queue has room for all of them.
const MESSAGES_PER_ROUND: usize = 40;

const MIB: f64 = 1024.0 * 1024.0;

fn message(number: usize) -> Vec<u8> {
    let mut payload = vec![b'.'; MESSAGE_BYTES];
    payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
    payload
}

fn number_of(payload: &[u8]) -> usize {
    let (number, padding) = payload.split_first_chunk().expect("eight bytes");
    assert!(padding.iter().all(|byte| *byte == b'.') && payload.len() == MESSAGE_BYTES);
    u64::from_be_bytes(*number) as usize
}

/// A hundred subscribers that read, one that does not, and a publisher that hears nothing.
struct Channel {
    gateway: Gateway,
    readers: Vec<Client>,
    publisher: Client,
    stalled: RawClient,
    published: usize,
}

impl Channel {
    async fn open(policy: &str) -> Self {
        let flags =
            ["--shards", "2", "--slow-consumer", policy, "--outbound-queue-bytes", "256KiB"];
        let gateway = Gateway::start(&flags).await;
        let readers = connect_many(gateway.listen, "/channels/news", 100).await;
        let publisher = gateway.connect("/channels/news?own=false").await;
        let stalled = gateway.open_stalled("/channels/news").await;
        Self { gateway, readers, publisher, stalled, published: 0 }
    }

    /// Publishes some messages, which all readers read.
    async fn publish_a_round(&mut self) {
        let numbers = self.published..self.published + MESSAGES_PER_ROUND;
        for number in numbers.clone() {
            self.publisher.send_binary(&message(number)).await;
        }
        self.published = numbers.end;
        for reader in &mut self.readers {
            for number in numbers.clone() {
                assert_eq!(number_of(&reader.read_binary().await), number, "readers miss nothing");
            }
        }
    }

    /// Publishes until the policy has struck, and then some more.
    async fn publish_until_dropped(&mut self) {
        for _ in 0..50 {
            self.publish_a_round().await;
            if self.dropped().await > 0 {
                self.publish_a_round().await;
                self.publish_a_round().await;
                self.settle().await;
                return;
            }
        }
        panic!("a stalled subscriber takes {} messages", self.published);
    }

    /// Waits until both shards are done with what was published: they serve others after that.
    async fn settle(&self) {
        for shard in [0, 1] {
            let mut client = self.gateway.connect_to_shard(shard, "/echo").await;
            client.send_text("done?").await;
            assert_eq!(client.read_text().await, "done?");
        }
    }

    async fn dropped(&self) -> usize {
        self.gateway.metrics().await.sum("wsgate_dropped_messages_total", &[]) as usize
    }

    /// How many messages were handed to the subscriber that does not read.
    async fn handed_to_stalled(&self) -> usize {
        let deliveries = self.gateway.metrics().await.sum("wsgate_deliveries_total", &[]);
        deliveries as usize - self.readers.len() * self.published
    }
}

#[tokio::test]
async fn slow_consumer_is_closed_with_1008_and_misses_exactly_what_is_counted() {
    let mut channel = Channel::open("close").await;
    channel.publish_until_dropped().await;
    let (handed, dropped) = (channel.handed_to_stalled().await, channel.dropped().await);
    assert!(handed < channel.published, "once tripped, nothing more is sent");
    let mut heard = 0;
    let close = loop {
        let frame = channel.stalled.read_frame().await;
        if frame.opcode == CLOSE {
            break frame;
        }
        assert_eq!(number_of(&frame.payload), heard, "no gap before the Close");
        heard += 1;
    };
    assert_eq!(close.close(), (1008, "slow consumer"));
    assert_eq!(handed - heard, dropped);
    channel.stalled.send_frame(CLOSE, &close_payload(1008, "")).await;
    channel.stalled.read_end().await;

    let ending = [("code", "1008"), ("initiator", "local")];
    channel.gateway.until_metric("wsgate_connections_closed_total", &ending, 1.0).await;
    let metrics = channel.gateway.metrics().await;
    let close = [("action", "close")];
    assert_eq!(metrics.sum("wsgate_slow_consumers_total", &close), 1.0);
    assert_eq!(metrics.sum("wsgate_slow_consumers_total", &[]), 1.0);
    assert_eq!(metrics.sum("wsgate_outbound_queue_bytes", &[]), 0.0);
    channel.publish_a_round().await;
}

/// Has the stalled subscriber read what is left for it: one message for each that was published and
/// not dropped.
async fn wake_up(channel: &mut Channel) -> Vec<usize> {
    let dropped = channel.dropped().await;
    assert_eq!(channel.handed_to_stalled().await, channel.published);
    let mut heard = Vec::new();
    for _ in 0..channel.published - dropped {
        heard.push(number_of(&channel.stalled.read_message(BINARY).await));
    }
    // It is a subscriber like any other again.
    channel.publish_a_round().await;
    for number in channel.published - MESSAGES_PER_ROUND..channel.published {
        assert_eq!(number_of(&channel.stalled.read_message(BINARY).await), number);
    }
    channel.settle().await;
    assert_eq!(channel.dropped().await, dropped);
    heard
}

#[tokio::test]
async fn slow_consumer_that_loses_the_oldest_hears_the_newest_and_misses_what_is_counted() {
    let mut channel = Channel::open("drop-oldest").await;
    channel.publish_until_dropped().await;
    let last = channel.published - 1;
    let heard = wake_up(&mut channel).await;
    assert!(heard.is_sorted_by(|earlier, later| earlier < later), "in order, and none twice");
    assert_eq!(heard.last(), Some(&last));
    // What the kernel held, then the gap, then what the queue held.
    let gaps = heard.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert_eq!(gaps, 1);
    let metrics = channel.gateway.metrics().await;
    let (all, oldest) = (&[][..], [("reason", "drop_oldest")]);
    let dropped = |labels| metrics.sum("wsgate_dropped_messages_total", labels);
    assert_eq!(dropped(&oldest), dropped(all));
    assert!(metrics.sum("wsgate_slow_consumers_total", &[("action", "drop_oldest")]) > 0.0);
}

#[tokio::test]
async fn slow_consumer_that_loses_the_newest_hears_the_oldest_and_misses_what_is_counted() {
    let mut channel = Channel::open("drop-newest").await;
    channel.publish_until_dropped().await;
    let heard = wake_up(&mut channel).await;
    assert_eq!(heard, (0..heard.len()).collect::<Vec<_>>());
    let metrics = channel.gateway.metrics().await;
    let (all, newest) = (&[][..], [("reason", "drop_newest")]);
    let dropped = |labels| metrics.sum("wsgate_dropped_messages_total", labels);
    assert_eq!(dropped(&newest), dropped(all));
    assert!(metrics.sum("wsgate_slow_consumers_total", &[("action", "drop_newest")]) > 0.0);
}

async fn resident_bytes(gateway: &Gateway) -> f64 {
    gateway.metrics().await.sum("process_resident_memory_bytes", &[])
}

#[tokio::test]
async fn echo_client_that_never_reads_is_not_read_and_harms_nobody() {
    const DEAF: usize = 8;
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let frame = encode(BINARY, &[b'x'; 60_000]);
    let mut others = connect_many(gateway.listen, "/echo", 4).await;
    let before = resident_bytes(&gateway).await;
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        let mut client = gateway.open_stalled("/echo").await;
        // A gateway that goes on reading would have to hold the answers somewhere.
        let sent = client.send_until_full(&frame, 64 << 20).await;
        deaf.push((client, sent));
        for other in &mut others {
            other.send_text("still quick").await;
            assert_eq!(other.read_text().await, "still quick");
        }
    }
    let grown = resident_bytes(&gateway).await - before;
    // A queue of at most 1 MiB for each, and the rest for what an allocator keeps.
    assert!(grown < DEAF as f64 * MIB + 16.0 * MIB, "{} MiB", grown / MIB);
    let queued = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    assert!(queued <= DEAF as f64 * MIB, "{queued}");
    assert!(queued > 0.0, "nobody was ever slow, so this test says nothing");

    // Whoever reads late still gets every answer.
    let (late, sent) = &mut deaf[0];
    for _ in 0..*sent / frame.len() {
        assert_eq!(late.read_message(BINARY).await.len(), 60_000);
    }
    late.send(&frame[*sent % frame.len()..]).await;
    assert_eq!(late.read_message(BINARY).await.len(), 60_000);

    drop(deaf);
    gateway.until_metric("wsgate_connections", &[], 4.0).await;
    gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
}

#[tokio::test]
async fn pings_of_a_client_that_does_not_read_cannot_fill_its_queue() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let before = resident_bytes(&gateway).await;
    let mut client = gateway.open_stalled("/echo").await;
    let pings = encode(PING, &[b'x'; 125]).repeat(500);
    // Only the latest Ping needs an answer, so it may go on reading. What it holds does not grow.
    let mut sent = 0;
    while sent < 16 << 20 {
        client.send(&pings).await;
        sent += pings.len();
    }
    let received = || async { gateway.metrics().await.sum("wsgate_received_bytes_total", &[]) };
    support::until("all Pings to be read", async || {
        (received().await >= sent as f64).then_some(())
    })
    .await;
    assert!(resident_bytes(&gateway).await - before < 8.0 * MIB);
    let mut other = gateway.connect("/echo").await;
    other.send_text("still quick").await;
    assert_eq!(other.read_text().await, "still quick");
}

#[tokio::test]
async fn pong_goes_out_before_the_messages_that_wait() {
    let gateway = Gateway::start(&["--shards", "1", "--outbound-queue-bytes", "64MiB"]).await;
    let mut stalled = gateway.open_stalled("/channels/news").await;
    let mut publisher = gateway.connect("/channels/news?own=false").await;
    let mut published = 0;
    let queued = loop {
        for _ in 0..100 {
            publisher.send_binary(&message(published)).await;
            published += 1;
        }
        gateway.until_metric("wsgate_deliveries_total", &[], published as f64).await;
        let queued = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
        if queued > MIB {
            break queued as usize;
        }
    };
    let received = gateway.metrics().await.sum("wsgate_received_bytes_total", &[]);
    let ping = encode(PING, b"are you there?");
    stalled.send(&ping).await;
    let expected = received + ping.len() as f64;
    gateway.until_metric("wsgate_received_bytes_total", &[], expected).await;

    let (mut heard, mut bytes_behind_pong, mut is_behind_pong) = (0, 0, false);
    while heard < published {
        let frame = stalled.read_frame().await;
        if frame.opcode == PONG {
            assert_eq!(frame.payload, b"are you there?");
            is_behind_pong = true;
            continue;
        }
        assert_eq!(number_of(&frame.payload), heard);
        heard += 1;
        bytes_behind_pong += if is_behind_pong { frame.bytes } else { 0 };
    }
    // The one frame of which a part was written cannot be interrupted.
    assert!(bytes_behind_pong + MESSAGE_BYTES + 4 >= queued, "{bytes_behind_pong} of {queued}");
}

#[tokio::test]
async fn ping_is_answered_while_a_large_message_is_still_arriving() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut client = gateway.open_raw("/echo").await;
    client.send(&encode_with(BINARY, &[b'x'; 30_000])).await;
    client.send_frame(PING, b"first").await;
    assert_eq!(client.read_message(PONG).await, b"first");
    let middle = encode_with(CONTINUATION, &[b'x'; 30_000]);
    client.send(&middle[..10_000]).await;
    client.send(&[&middle[10_000..], &encode(PING, b"second")].concat()).await;
    assert_eq!(client.read_message(PONG).await, b"second");
    client.send_frame(CONTINUATION, &[b'x'; 5_000]).await;
    assert_eq!(client.read_message(BINARY).await, [b'x'; 65_000]);
}

#[tokio::test]
async fn subscriber_that_does_not_read_does_not_slow_the_others() {
    let gateway = Gateway::start(&["--shards", "1", "--slow-consumer", "drop-newest"]).await;
    let mut stalled = Vec::new();
    for _ in 0..10 {
        stalled.push(gateway.open_stalled("/channels/news").await);
    }
    let mut client = gateway.connect("/channels/news").await;
    let before = resident_bytes(&gateway).await;
    let start = Instant::now();
    for number in 0..1_000 {
        client.send_binary(&message(number)).await;
        assert_eq!(number_of(&client.read_binary().await), number);
    }
    assert!(start.elapsed() < support::PATIENCE / 2, "{:?}", start.elapsed());
    let grown = resident_bytes(&gateway).await - before;
    assert!(grown < 10.0 * MIB + 16.0 * MIB, "{} MiB", grown / MIB);
    let queued = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    assert!(queued <= 10.0 * MIB, "{queued}");
    drop(stalled);
}
