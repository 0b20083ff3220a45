//! One connection alone, whose test says what happens. Every promise is looked at after each step.

use std::time::{Duration, Instant};

use wsgate::connection::Timing;
use wsgate::connection::outbound::{Limit, SlowConsumerPolicy};
use wsgate::pubsub::{ConnectionId, ShardId};

use crate::frames::TEXT;
use crate::peer::Peer;
use crate::promises::{Messages, Origin, Terms};
use crate::random::Random;
use crate::shard::{Ask, Client, Settings, Shard};
use crate::world::encode;

/// Bytes that may wait.
const QUEUE_BYTES: usize = 300;

/// A connection to `/echo` whose peer reads all until the test says something else.
pub(crate) struct Line {
    shard: Shard,
    client: Client,
    peer: Peer,
    messages: Messages,
    random: Random,
}

impl Line {
    pub(crate) fn new(policy: SlowConsumerPolicy) -> Self {
        let timing = Timing {
            ping_interval: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(5),
        };
        let limit = Limit { max_bytes: QUEUE_BYTES, policy };
        let terms =
            Terms { timing, limit, max_message_bytes: 100, max_answer_bytes: QUEUE_BYTES + 500 };
        let settings = Settings { terms, read_buffer_bytes: 500, max_turn_bytes: 500 };
        let shard = Shard::new(settings, Instant::now());
        let id = ConnectionId { shard: ShardId::new(0), slot: 0, generation: 0 };
        let client = Client::new(id, Ask::Echo, Vec::new(), usize::MAX, &shard);
        let mut random = Random::new(0);
        let peer = Peer::new(1, &mut random);
        Self { shard, client, peer, messages: Messages::default(), random }
    }

    /// The peer reads nothing more.
    pub(crate) fn fill(&mut self) {
        self.client.socket.set_room(0);
    }

    /// The peer reads all that there is.
    pub(crate) fn drain(&mut self) {
        self.client.socket.set_room(usize::MAX);
        self.drive();
        assert!(self.client.connection.outbound.is_empty(), "there was room for everything");
    }

    /// The peer sends a Ping.
    pub(crate) fn ping(&mut self) {
        self.peer.say_ping(&mut self.client.record, &mut self.random);
        self.client.socket.arrive(self.peer.arrive(usize::MAX));
        self.drive();
    }

    /// Somebody sends a message of `bytes` to this connection.
    pub(crate) fn send(&mut self, bytes: usize) {
        let id = self.messages.make(Origin::Direct, None, TEXT, bytes);
        self.client.record.offer(Origin::Direct, id);
        self.client.deliver_frame(encode(id, &self.messages), &mut self.shard);
        self.drive();
    }

    fn drive(&mut self) {
        self.client.drive(&mut self.shard, &self.messages);
        let taken = self.client.socket.look();
        let (connection, terms) = (&self.client.connection, &self.shard.settings.terms);
        self.client.record.check(connection, &taken, self.shard.now, terms, &self.messages);
    }
}
