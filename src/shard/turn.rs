//! The publications of one turn of a shard's loop, collected by channel.
//!
//! Batching comes from load, not from a timer: whoever publishes first in a turn wakes the flush,
//! which runs after every task that is ready by then. The busier the turn, the larger the batch.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;

use crate::hub::{ChannelKey, Hub};
use crate::pubsub::{Batch, BatchBuilder, ChannelName, ConnectionId};

/// A turn that has collected this many bytes is flushed before more is read. The bound is what keeps
/// a turn of many large messages from taking memory without end.
pub(crate) const MAX_TURN_BYTES: usize = 1 << 20;

/// What was published since the last flush.
#[derive(Default)]
pub(crate) struct Turn {
    /// In the order of each channel's first publication.
    batches: Vec<(ChannelName, BatchBuilder)>,
    /// By [`ChannelKey::index`]: the index into `batches` plus one, or zero. So a message on a channel
    /// that has a batch already finds it without looking its name up.
    by_key: Vec<u32>,
    /// Keys whose entry in `by_key` is not zero.
    keys: Vec<ChannelKey>,
    /// Channels without a subscriber on this shard.
    by_name: HashMap<ChannelName, u32>,
    bytes: usize,
}

/// A frame to be published.
pub(crate) enum Frame<'a> {
    /// In a buffer that will be used again.
    Borrowed(&'a [u8]),
    /// In a buffer of its own.
    Owned(Bytes),
}

impl Turn {
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= MAX_TURN_BYTES
    }

    /// Adds one frame for `channel`, which has a subscriber on this shard.
    #[inline]
    pub(crate) fn publish(
        &mut self,
        channel: ChannelKey,
        hub: &Hub,
        frame: Frame<'_>,
        excluded: Option<ConnectionId>,
        now: Instant,
    ) {
        let batch = self.batch(channel, hub, now);
        let before = batch.weight();
        match frame {
            Frame::Borrowed(frame) => batch.push_borrowed(frame, excluded),
            Frame::Owned(frame) => batch.push(frame, excluded),
        }
        let added = batch.weight() - before;
        self.bytes += added;
    }

    /// Adds a batch that came from elsewhere.
    pub(crate) fn publish_batch(&mut self, channel: ChannelName, hub: &Hub, batch: &Batch) {
        self.bytes += batch.weight();
        match hub.find(&channel) {
            Some(key) => self.batch(key, hub, batch.received_at()).push_batch(batch),
            None => {
                let next = self.batches.len() as u32;
                let index = *self.by_name.entry(channel.clone()).or_insert(next);
                if index == next {
                    self.batches.push((channel, BatchBuilder::new(batch.received_at())));
                }
                self.batches[index as usize].1.push_batch(batch);
            }
        }
    }

    /// Forgets that `channel` is known by this key; it will name another channel.
    pub(crate) fn forget(&mut self, channel: ChannelKey) {
        if let Some(index) = self.by_key.get_mut(channel.index()) {
            *index = 0;
        }
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> Vec<(ChannelName, BatchBuilder)> {
        for key in self.keys.drain(..) {
            self.by_key[key.index()] = 0;
        }
        self.by_name.clear();
        self.bytes = 0;
        std::mem::take(&mut self.batches)
    }

    #[inline]
    fn batch(&mut self, channel: ChannelKey, hub: &Hub, now: Instant) -> &mut BatchBuilder {
        if channel.index() >= self.by_key.len() {
            self.by_key.resize(channel.index() + 1, 0);
        }
        let index = &mut self.by_key[channel.index()];
        if *index == 0 {
            self.batches.push((hub.name(channel).clone(), BatchBuilder::new(now)));
            *index = self.batches.len() as u32;
            self.keys.push(channel);
        }
        &mut self.batches[*index as usize - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;
    use crate::wire::header::Opcode;

    fn name(name: &str) -> ChannelName {
        ChannelName::new(name).unwrap()
    }

    fn taken(turn: &mut Turn) -> Vec<(String, usize)> {
        let batches = turn.take().into_iter();
        batches.map(|(name, batch)| (name.to_string(), batch.finish().bytes())).collect()
    }

    #[test]
    fn publications_of_a_turn_collect_by_channel_and_are_taken_once() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let now = Instant::now();
        let [a, b] = ["a", "b"].map(|channel| hub.subscribe(0, &name(channel)).channel);
        let frame = frame::encode(Opcode::Text, b"x");
        turn.publish(b, &hub, Frame::Borrowed(&frame), None, now);
        turn.publish(a, &hub, Frame::Owned(frame.clone()), None, now);
        turn.publish(b, &hub, Frame::Borrowed(&frame), None, now);
        turn.publish_batch(name("b"), &hub, &Batch::single(frame.clone(), now));
        turn.publish_batch(name("elsewhere"), &hub, &Batch::single(frame.clone(), now));
        turn.publish_batch(name("elsewhere"), &hub, &Batch::single(frame.clone(), now));
        let expected = [("b", 9), ("a", 3), ("elsewhere", 6)];
        assert_eq!(taken(&mut turn), expected.map(|(name, bytes)| (name.to_owned(), bytes)));
        assert!(turn.is_empty() && taken(&mut turn).is_empty());
    }

    #[test]
    fn key_that_is_used_again_within_a_turn_does_not_mix_two_channels() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let now = Instant::now();
        let old = hub.subscribe(0, &name("old"));
        let frame = frame::encode(Opcode::Text, b"x");
        turn.publish(old.channel, &hub, Frame::Borrowed(&frame), None, now);
        let (key, _) = hub.unsubscribe(old.key).unwrap();
        turn.forget(key);
        let new = hub.subscribe(0, &name("new"));
        assert_eq!(new.channel, key, "this test needs a key that is used again");
        turn.publish(new.channel, &hub, Frame::Borrowed(&frame), None, now);
        let expected = [("old", 3), ("new", 3)];
        assert_eq!(taken(&mut turn), expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    }

    #[test]
    fn turn_is_full_once_it_holds_its_bound() {
        let (mut hub, mut turn) = (Hub::default(), Turn::default());
        let channel = hub.subscribe(0, &name("a")).channel;
        let frame = frame::encode(Opcode::Binary, &vec![0; MAX_TURN_BYTES]);
        turn.publish(channel, &hub, Frame::Owned(frame), None, Instant::now());
        assert!(turn.is_full());
        turn.take();
        assert!(!turn.is_full());
    }
}
