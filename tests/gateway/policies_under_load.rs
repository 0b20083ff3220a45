//! A thousand subscribers that read and one that stops: it harms itself at most, as the policy says.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::support::client::{Client, connect_many};
use crate::support::gateway::Gateway;
use crate::support::raw::{CLOSE, RawClient, close_payload};
use crate::support::sequence::{self, Heard};

const READERS: usize = 1_000;

/// The bound of one connection's outbound queue.
const QUEUE_BYTES: usize = 256 * 1024;

/// Lengths of messages in turn: some are copied beside others, some have a buffer of their own.
const MESSAGE_BYTES: [usize; 6] = [64, 4_000, 16_384, 200, 1_000, 20_000];

/// Messages that are on their way at a time: few enough for the sockets of those who read.
const MESSAGES_PER_ROUND: usize = 2 * MESSAGE_BYTES.len();

/// For that many rounds the slow subscriber reads like the others.
const ROUNDS_BEFORE: usize = 4;

/// For that many it does not. What is published in them is seven times of what its queue holds.
const ROUNDS_STALLED: usize = 22;

/// What the gateway's memory may grow by beyond the queue: what the allocator keeps for buffers that
/// are used again.
const MEMORY_SLACK: usize = 512 * 1024;

fn message(number: usize) -> String {
    sequence::text(0, number as u32, MESSAGE_BYTES[number % MESSAGE_BYTES.len()])
}

struct Crowd {
    gateway: Gateway,
    readers: Vec<Client>,
    /// It hears nothing.
    publisher: Client,
    slow: RawClient,
    /// What the slow one has heard.
    heard: Heard,
    published: usize,
    /// Most that waited in all outbound queues at a time, of what was seen.
    most_queued_bytes: usize,
    /// Most memory that the gateway had, of what was seen.
    most_memory_bytes: usize,
}

impl Crowd {
    async fn gather(policy: &str) -> Self {
        let queue = QUEUE_BYTES.to_string();
        let flags = ["--shards", "2", "--slow-consumer", policy, "--outbound-queue-bytes", &queue];
        // However long a busy machine takes, no Ping comes between the messages.
        let silence = ["--ping-interval", "10m", "--idle-timeout", "20m"];
        let gateway = Gateway::start(&[&flags[..], &silence].concat()).await;
        let readers = connect_many(gateway.listen, "/channels/news", READERS).await;
        let publisher = gateway.connect("/channels/news?own=false").await;
        let slow = gateway.open_narrow("/channels/news").await;
        Self {
            gateway,
            readers,
            publisher,
            slow,
            heard: Heard::default(),
            published: 0,
            most_queued_bytes: 0,
            most_memory_bytes: 0,
        }
    }

    /// Publishes some messages. Each of the thousand reads all of them, in order.
    async fn publish_a_round(&mut self) {
        let numbers = self.published..self.published + MESSAGES_PER_ROUND;
        self.published = numbers.end;
        let messages: Arc<[String]> = numbers.map(message).collect();
        for message in &*messages {
            self.publisher.send_text(message).await;
        }
        let mut reading = JoinSet::new();
        for mut reader in self.readers.drain(..) {
            let messages = Arc::clone(&messages);
            reading.spawn(async move {
                for message in &*messages {
                    assert_eq!(reader.read_text().await, *message, "readers miss nothing");
                }
                reader
            });
        }
        // One look in the middle, one when it is over.
        self.look().await;
        self.readers = reading.join_all().await;
        self.look().await;
    }

    async fn look(&mut self) {
        let queued = self.metric("wsgate_outbound_queue_bytes", &[]).await;
        self.most_queued_bytes = self.most_queued_bytes.max(queued);
        self.most_memory_bytes = self.most_memory_bytes.max(self.gateway.memory_bytes());
    }

    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> usize {
        self.gateway.metrics().await.sum(name, labels) as usize
    }

    /// Has the slow one read as long as all read, and then no more for many rounds, in which its queue
    /// and the gateway's memory keep their bound.
    async fn publish_until_far_too_much(&mut self) {
        for _ in 0..ROUNDS_BEFORE {
            self.publish_a_round().await;
            for _ in 0..MESSAGES_PER_ROUND {
                self.hear_next().await;
            }
        }
        self.gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
        let memory_before = self.gateway.memory_bytes();
        (self.most_queued_bytes, self.most_memory_bytes) = (0, memory_before);
        for _ in 0..ROUNDS_STALLED {
            self.publish_a_round().await;
            if self.metric("wsgate_slow_consumers_total", &[("action", "close")]).await > 0 {
                // It has five seconds for the closing handshake, and we shall see that.
                self.publish_a_round().await;
                break;
            }
        }
        self.settle().await;
        let queued = self.most_queued_bytes;
        assert!(queued <= QUEUE_BYTES, "{queued} bytes waited");
        // It is looked at a few times in a round, and the closing policy empties it once it is full.
        assert!(queued >= QUEUE_BYTES / 2, "the queue was never full, so this test says nothing");
        let grown = self.most_memory_bytes - memory_before;
        assert!(grown <= QUEUE_BYTES + MEMORY_SLACK, "{grown} bytes of memory more than before");
    }

    /// Waits until both shards are done with what was published: they serve others after that.
    async fn settle(&self) {
        for shard in [0, 1] {
            let mut client = self.gateway.connect_to_shard(shard, "/echo").await;
            client.send_text("done?").await;
            assert_eq!(client.read_text().await, "done?");
        }
    }

    /// Has the slow one read a message, which is the one after the last that it read.
    async fn hear_next(&mut self) {
        let frame = self.slow.read_frame().await;
        self.heard.next_from_the_first(&frame.payload);
    }

    /// How many messages were handed to the slow one, whether they reached it or not.
    async fn handed_to_slow(&self) -> usize {
        self.metric("wsgate_deliveries_total", &[]).await - self.readers.len() * self.published
    }

    async fn dropped(&self) -> usize {
        self.metric("wsgate_dropped_messages_total", &[]).await
    }

    /// Demands that the policy struck as `action`, and no other.
    async fn assert_only_action(&self, action: &str) {
        let metrics = self.gateway.metrics().await;
        for (name, label) in
            [("wsgate_slow_consumers_total", "action"), ("wsgate_dropped_messages_total", "reason")]
        {
            let of_action = metrics.sum(name, &[(label, action)]);
            assert!(of_action > 0.0, "{name}");
            assert_eq!(of_action, metrics.sum(name, &[]), "{name}");
        }
    }

    /// Has the slow one read everything that is left for it: one message for each that was published
    /// and not dropped. After that it is a subscriber like any other.
    async fn wake_up(&mut self) {
        let dropped = self.dropped().await;
        assert_eq!(self.handed_to_slow().await, self.published);
        while self.heard.messages < self.published - dropped {
            let frame = self.slow.read_frame().await;
            self.heard.later(&frame.payload);
        }
        self.gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
        self.publish_a_round().await;
        for number in self.published - MESSAGES_PER_ROUND..self.published {
            let frame = self.slow.read_frame().await;
            assert_eq!(frame.payload, message(number).as_bytes());
        }
        assert_eq!(self.dropped().await, dropped);
        // The thousand, the publisher and the slow one: nobody was closed.
        let connections = [("shard", "0"), ("shard", "1")].map(|label| [label]);
        let mut open = 0;
        for shard in &connections {
            open += self.metric("wsgate_connections", shard).await;
        }
        assert_eq!(open, READERS + 2);
    }
}

#[tokio::test]
async fn close_policy_ends_the_slow_one_with_1008_without_a_gap_before_it() {
    let mut crowd = Crowd::gather("close").await;
    crowd.publish_until_far_too_much().await;
    crowd.assert_only_action("close").await;
    assert_eq!(crowd.metric("wsgate_slow_consumers_total", &[]).await, 1);
    let (handed, dropped) = (crowd.handed_to_slow().await, crowd.dropped().await);
    assert!(handed < crowd.published, "once tripped, nothing more is sent");
    let close = loop {
        let frame = crowd.slow.read_frame().await;
        if frame.opcode == CLOSE {
            break frame;
        }
        crowd.heard.next_from_the_first(&frame.payload);
    };
    assert_eq!(close.close(), (1008, "slow consumer"));
    assert_eq!(crowd.heard.messages + dropped, handed);
    crowd.slow.send_frame(CLOSE, &close_payload(1008, "")).await;
    crowd.slow.read_end().await;

    let ending = [("code", "1008"), ("initiator", "local")];
    crowd.gateway.until_metric("wsgate_connections_closed_total", &ending, 1.0).await;
    crowd.gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
    crowd.publish_a_round().await;
    assert_eq!(crowd.dropped().await, dropped);
}

#[tokio::test]
async fn drop_oldest_policy_costs_the_slow_one_the_oldest_that_wait_and_counts_each() {
    let mut crowd = Crowd::gather("drop-oldest").await;
    crowd.publish_until_far_too_much().await;
    crowd.assert_only_action("drop_oldest").await;
    let last = crowd.published - 1;
    crowd.wake_up().await;
    assert_eq!(crowd.heard.last_of(0), Some(last as u32), "the newest are kept");
    let behind_the_gap = crowd.heard.without_a_gap;
    // What the queue held has no gap: at least as many as half of it, were they all of the mean length.
    let mean_bytes = MESSAGE_BYTES.iter().sum::<usize>() / MESSAGE_BYTES.len();
    assert!(behind_the_gap * mean_bytes >= QUEUE_BYTES / 2, "{behind_the_gap} messages");
}

#[tokio::test]
async fn drop_newest_policy_costs_the_slow_one_what_has_no_room_and_counts_each() {
    let mut crowd = Crowd::gather("drop-newest").await;
    crowd.publish_until_far_too_much().await;
    crowd.assert_only_action("drop_newest").await;
    crowd.wake_up().await;
    // A small message may find room where a large one did not, so there may be several gaps; but in
    // the end there was room for none.
    let last = crowd.heard.last_of(0).expect("it has heard something");
    let newest = crowd.published - 2 * MESSAGES_PER_ROUND;
    assert!((last as usize) < newest, "the newest are dropped, not {last}");
}
