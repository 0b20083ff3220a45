//! What one turn of a shard's loop has for the subscribers, collected by channel: what was published
//! here, and what came from other shards.
//!
//! Batching comes from load, not from a timer: whatever comes first in a turn wakes the flush, which
//! runs after every task that is ready by then. The busier the turn, the larger the batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::hub::{ChannelKey, Hub};
use crate::pubsub::{Batch, BatchBuilder, ChannelName, ConnectionId, ShardId};

/// A turn that has collected this many bytes is flushed before more is read. The bound is what keeps
/// a turn of many large messages from taking memory without end.
pub(crate) const MAX_TURN_BYTES: usize = 1 << 20;

/// What was collected since the last flush.
#[derive(Default)]
pub(crate) struct Turn {
    /// In the order of each channel's first publication or delivery.
    collected: Vec<Collected>,
    /// Where the publications to channels with a subscriber here are.
    publications: Index,
    /// Where the publications to the other channels are.
    publications_by_name: HashMap<ChannelName, usize>,
    /// Where the deliveries are. A channel whose home is elsewhere can have both in one turn.
    deliveries: Index,
    bytes: usize,
}

/// What was collected for one channel.
#[derive(Debug)]
pub(crate) struct Collected {
    /// What the channel is called by the hub. `None` where nobody here was subscribed to it when it
    /// was collected, and where the last one has left since: the key may be another channel's by now.
    pub(crate) key: Option<ChannelKey>,
    pub(crate) task: Task,
    pub(crate) batch: Joined,
}

/// What is to be done with a batch.
#[derive(Debug)]
pub(crate) enum Task {
    /// Have the broker publish it.
    Publish {
        channel: ChannelName,
        /// Of the channel.
        home: ShardId,
    },
    /// Hand it to the subscribers here: its home, another shard, has decided its place in the order.
    Deliver,
}

/// One batch or more of a channel that leave together.
#[derive(Debug)]
pub(crate) enum Joined {
    /// One that is finished already. It goes on as it is, shared with whoever else has it.
    Whole(Arc<Batch>),
    Growing(BatchBuilder),
}

/// A frame to be published.
pub(crate) enum Frame<'a> {
    /// In a buffer that will be used again.
    Borrowed(&'a [u8]),
    /// In a buffer of its own.
    Owned(Bytes),
}

impl Joined {
    /// Its builder. What was whole is copied into it, less the large frames, which stay shared.
    #[inline]
    fn builder(&mut self) -> &mut BatchBuilder {
        if let Self::Whole(batch) = self {
            let mut builder = BatchBuilder::new(batch.received_at());
            builder.push_batch(batch);
            *self = Self::Growing(builder);
        }
        match self {
            Self::Growing(builder) => builder,
            Self::Whole(_) => unreachable!("it was replaced above"),
        }
    }

    /// All of it, ready to be shared.
    pub(crate) fn finish(self) -> Arc<Batch> {
        match self {
            Self::Whole(batch) => batch,
            Self::Growing(builder) => Arc::new(builder.finish()),
        }
    }
}

/// Places in a list by channel, so that what has a place already is found without looking a name up.
#[derive(Default)]
struct Index {
    /// By [`ChannelKey::index`]: the place plus one, or zero.
    places: Vec<u32>,
    /// Keys whose entry in `places` is not zero.
    keys: Vec<ChannelKey>,
}

impl Index {
    /// The place of `channel`, which is `new` if it had none.
    #[inline]
    fn enter(&mut self, channel: ChannelKey, new: usize) -> usize {
        if channel.index() >= self.places.len() {
            self.places.resize(channel.index() + 1, 0);
        }
        let place = &mut self.places[channel.index()];
        if *place == 0 {
            *place = new as u32 + 1;
            self.keys.push(channel);
        }
        *place as usize - 1
    }

    /// Forgets the place of `channel`, and returns it.
    fn forget(&mut self, channel: ChannelKey) -> Option<usize> {
        let place = std::mem::take(self.places.get_mut(channel.index())?);
        (place as usize).checked_sub(1)
    }

    fn clear(&mut self) {
        for key in self.keys.drain(..) {
            self.places[key.index()] = 0;
        }
    }
}

impl Turn {
    pub(crate) fn is_empty(&self) -> bool {
        self.collected.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= MAX_TURN_BYTES
    }

    /// Adds one frame that was published here, to `channel`, which has a subscriber on this shard.
    #[inline]
    pub(crate) fn publish(
        &mut self,
        channel: ChannelKey,
        home: ShardId,
        hub: &Hub,
        frame: Frame<'_>,
        excluded: Option<ConnectionId>,
        now: Instant,
    ) {
        let place = self.publications.enter(channel, self.collected.len());
        if place == self.collected.len() {
            self.forget_name(hub.name(channel));
            let task = Task::Publish { channel: hub.name(channel).clone(), home };
            let batch = Joined::Growing(BatchBuilder::new(now));
            self.collected.push(Collected { key: Some(channel), task, batch });
        }
        let batch = self.collected[place].batch.builder();
        let before = batch.weight();
        match frame {
            Frame::Borrowed(frame) => batch.push_borrowed(frame, excluded),
            Frame::Owned(frame) => batch.push(frame, excluded),
        }
        self.bytes += batch.weight() - before;
    }

    /// Adds a batch that was published elsewhere to `channel`, whose home is this shard, `here`.
    pub(crate) fn publish_batch(
        &mut self,
        channel: ChannelName,
        here: ShardId,
        hub: &Hub,
        batch: Arc<Batch>,
    ) {
        let new = self.collected.len();
        let key = hub.find(&channel);
        let place = match key {
            Some(key) => {
                let place = self.publications.enter(key, new);
                if place == new {
                    self.forget_name(&channel);
                }
                place
            }
            None => *self.publications_by_name.entry(channel.clone()).or_insert(new),
        };
        self.join(place, key, Task::Publish { channel, home: here }, batch);
    }

    /// A channel that has a place by its key has none by its name any more: if its subscribers leave
    /// within the turn, what comes then must not join what came before them.
    fn forget_name(&mut self, channel: &ChannelName) {
        if !self.publications_by_name.is_empty() {
            self.publications_by_name.remove(channel);
        }
    }

    /// Adds a batch that another shard, its home, has sent for the subscribers of `channel` here.
    pub(crate) fn deliver_batch(&mut self, channel: ChannelKey, batch: Arc<Batch>) {
        let place = self.deliveries.enter(channel, self.collected.len());
        self.join(place, Some(channel), Task::Deliver, batch);
    }

    fn join(&mut self, place: usize, key: Option<ChannelKey>, task: Task, batch: Arc<Batch>) {
        self.bytes += batch.weight();
        match self.collected.get_mut(place) {
            Some(collected) => collected.batch.builder().push_batch(&batch),
            None => self.collected.push(Collected { key, task, batch: Joined::Whole(batch) }),
        }
    }

    /// Forgets that `channel` is known by this key; it will name another channel.
    pub(crate) fn forget(&mut self, channel: ChannelKey) {
        for index in [&mut self.publications, &mut self.deliveries] {
            if let Some(place) = index.forget(channel) {
                self.collected[place].key = None;
            }
        }
    }

    /// Takes everything, and leaves the room of `taken`, which is empty, for what comes next.
    pub(crate) fn take(&mut self, taken: &mut Vec<Collected>) {
        debug_assert!(taken.is_empty(), "what was taken before is done");
        self.publications.clear();
        self.publications_by_name.clear();
        self.deliveries.clear();
        self.bytes = 0;
        std::mem::swap(&mut self.collected, taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Group;
    use crate::wire::frame;
    use crate::wire::header::Opcode;

    fn here() -> ShardId {
        ShardId::new(0)
    }

    fn name(name: &str) -> ChannelName {
        ChannelName::new(name).unwrap()
    }

    fn subscribe(hub: &mut Hub, channel: &str) -> crate::hub::Subscribed {
        hub.subscribe(0, &name(channel), Group::Plain)
    }

    fn text(text: &str) -> Bytes {
        frame::encode(Opcode::Text, text.as_bytes())
    }

    fn batch(payload: &str) -> Arc<Batch> {
        Arc::new(Batch::single(text(payload), Instant::now()))
    }

    /// What a flush would get: the name of the channel for what is to be published and the key of it
    /// for what is to be delivered, and all bytes.
    fn taken(turn: &mut Turn) -> Vec<(String, usize)> {
        let mut taken = Vec::new();
        turn.take(&mut taken);
        let shown = taken.into_iter().map(|Collected { key, task, batch }| {
            let what = match task {
                Task::Publish { channel, .. } => channel.to_string(),
                Task::Deliver => format!("{:?}", key.map(ChannelKey::index)),
            };
            (what, batch.finish().bytes())
        });
        shown.collect()
    }

    fn expected<const N: usize>(expected: [(&str, usize); N]) -> Vec<(String, usize)> {
        expected.map(|(what, bytes)| (what.to_owned(), bytes)).to_vec()
    }

    #[test]
    fn what_a_turn_has_collects_by_channel_in_order_of_activation_and_is_taken_once() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let now = Instant::now();
        let [a, b] = ["a", "b"].map(|channel| subscribe(&mut hub, channel).channel);
        let frame = text("x");
        turn.publish(b, here(), &hub, Frame::Borrowed(&frame), None, now);
        turn.deliver_batch(a, batch("yy"));
        turn.publish(a, here(), &hub, Frame::Owned(frame.clone()), None, now);
        turn.publish(b, here(), &hub, Frame::Borrowed(&frame), None, now);
        turn.publish_batch(name("b"), here(), &hub, batch("x"));
        turn.publish_batch(name("elsewhere"), here(), &hub, batch("x"));
        turn.publish_batch(name("elsewhere"), here(), &hub, batch("x"));
        turn.deliver_batch(a, batch("yy"));
        assert_eq!(a.index(), 0);
        assert_eq!(
            taken(&mut turn),
            expected([("b", 9), ("Some(0)", 8), ("a", 3), ("elsewhere", 6)])
        );
        assert!(turn.is_empty() && taken(&mut turn).is_empty());
        // The next turn knows nothing of the one before.
        turn.publish(b, here(), &hub, Frame::Borrowed(&frame), None, now);
        turn.deliver_batch(a, batch("yy"));
        turn.publish_batch(name("elsewhere"), here(), &hub, batch("x"));
        assert_eq!(taken(&mut turn), expected([("b", 3), ("Some(0)", 4), ("elsewhere", 3)]));
    }

    #[test]
    fn batch_that_stays_alone_goes_on_as_it_came() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let channel = subscribe(&mut hub, "a").channel;
        let batches = [batch("published"), batch("delivered")];
        turn.publish_batch(name("a"), here(), &hub, Arc::clone(&batches[0]));
        turn.deliver_batch(channel, Arc::clone(&batches[1]));
        let mut taken = Vec::new();
        turn.take(&mut taken);
        for (collected, batch) in taken.into_iter().zip(&batches) {
            assert!(Arc::ptr_eq(&collected.batch.finish(), batch));
        }
    }

    #[test]
    fn key_that_is_used_again_within_a_turn_does_not_mix_two_channels() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let now = Instant::now();
        let old = subscribe(&mut hub, "old");
        let frame = text("x");
        turn.publish(old.channel, here(), &hub, Frame::Borrowed(&frame), None, now);
        turn.deliver_batch(old.channel, batch("for those who left"));
        let (key, _) = hub.unsubscribe(old.key).unwrap();
        turn.forget(key);
        let new = subscribe(&mut hub, "new");
        assert_eq!(new.channel, key, "this test needs a key that is used again");
        turn.publish(new.channel, here(), &hub, Frame::Borrowed(&frame), None, now);
        turn.deliver_batch(new.channel, batch("x"));
        assert_eq!(
            taken(&mut turn),
            expected([("old", 3), ("None", 20), ("new", 3), ("Some(0)", 3)])
        );
    }

    #[test]
    fn subscriber_that_comes_and_goes_within_a_turn_does_not_change_the_order() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        turn.publish_batch(name("a"), here(), &hub, batch("1"));
        let subscribed = subscribe(&mut hub, "a");
        turn.publish_batch(name("a"), here(), &hub, batch("22"));
        let (key, _) = hub.unsubscribe(subscribed.key).unwrap();
        turn.forget(key);
        turn.publish_batch(name("a"), here(), &hub, batch("333"));
        assert_eq!(taken(&mut turn), expected([("a", 3), ("a", 4), ("a", 5)]));
    }

    #[test]
    fn turn_is_full_once_it_holds_its_bound() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let channel = subscribe(&mut hub, "a").channel;
        let frame = frame::encode(Opcode::Binary, &vec![0; MAX_TURN_BYTES / 2]);
        turn.publish(channel, here(), &hub, Frame::Owned(frame.clone()), None, Instant::now());
        assert!(!turn.is_full());
        turn.deliver_batch(channel, Arc::new(Batch::single(frame, Instant::now())));
        assert!(turn.is_full());
        taken(&mut turn);
        assert!(!turn.is_full());
    }
}
