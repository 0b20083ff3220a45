//! Which shards have subscribers of which channel. No socket, no lock: each home shard keeps the
//! part of the directory that is about its own channels.

use std::collections::HashMap;

use crate::pubsub::{ChannelName, ShardId};

/// The channels of one home shard.
#[derive(Debug, Default)]
pub struct Directory {
    /// Never holds an empty list: the last shard to leave removes the channel.
    shards: HashMap<ChannelName, Vec<ShardId>>,
}

impl Directory {
    /// `shard` has a subscriber now.
    pub fn add(&mut self, channel: &ChannelName, shard: ShardId) {
        let shards = self.shards.entry(channel.clone()).or_default();
        if !shards.contains(&shard) {
            shards.push(shard);
        }
    }

    /// `shard` has no subscriber any more.
    pub fn remove(&mut self, channel: &ChannelName, shard: ShardId) {
        if let Some(shards) = self.shards.get_mut(channel) {
            shards.retain(|other| *other != shard);
            if shards.is_empty() {
                self.shards.remove(channel);
                if self.shards.capacity() > 64 && self.shards.len() * 8 < self.shards.capacity() {
                    self.shards.shrink_to(self.shards.len() * 2);
                }
            }
        }
    }

    /// The shards that have subscribers of `channel`.
    pub fn shards(&self, channel: &ChannelName) -> &[ShardId] {
        self.shards.get(channel).map_or(&[], Vec::as_slice)
    }

    /// How many channels have a subscriber anywhere.
    pub fn channels(&self) -> usize {
        self.shards.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_is_known_from_its_first_shard_to_its_last() {
        let mut directory = Directory::default();
        let channel = ChannelName::new("news").unwrap();
        let [first, second] = [0, 1].map(ShardId::new);
        directory.add(&channel, first);
        directory.add(&channel, second);
        directory.add(&channel, second);
        assert_eq!(directory.shards(&channel), [first, second]);
        directory.remove(&channel, first);
        assert_eq!((directory.shards(&channel), directory.channels()), (&[second][..], 1));
        directory.remove(&channel, second);
        assert_eq!((directory.shards(&channel), directory.channels()), (&[][..], 0));
        directory.remove(&channel, second);
    }
}
