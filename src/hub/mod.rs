//! Who on this shard gets it? No socket, no task, no lock.
//!
//! The hub answers *who*; how a frame reaches a subscriber is the shard's business.

use std::collections::HashMap;
use std::ops::Range;

use crate::pubsub::ChannelName;

/// Names one channel while it has a subscriber on this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelKey(u32);

impl ChannelKey {
    /// Position in a list of all channels of the shard.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names one subscription while it lasts. To be given back with [`Hub::unsubscribe`].
#[derive(Debug, PartialEq, Eq)]
pub struct SubscriptionKey(u32);

/// Subscribers that are written to alike. One that hears several channels may have something from more
/// than one of them, which is to leave in one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// They hear this channel alone and get frames as they were published.
    Plain,
    /// They hear this channel alone and get frames that are deflated once for all of them.
    Deflated,
    /// They hear several channels and get frames as they were published.
    SeveralPlain,
    /// They hear several channels and get frames that are deflated once for all of them.
    SeveralDeflated,
    /// Each of them gets frames of its own making, whatever it hears.
    Own,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 5] =
        [Self::Plain, Self::Deflated, Self::SeveralPlain, Self::SeveralDeflated, Self::Own];
}

/// One subscriber of a channel.
#[derive(Clone, Copy, Debug)]
struct Subscriber {
    slot: u32,
    subscription: u32,
}

#[derive(Debug)]
struct Channel {
    name: ChannelName,
    /// Never empty: the last unsubscribe removes the channel. Group after group, so that whoever
    /// writes to all of a group asks none of them.
    subscribers: Vec<Subscriber>,
    /// Where in the list each group ends, but for the last, which ends with it.
    ends: [u32; Group::ALL.len() - 1],
}

impl Channel {
    /// Where in the list `group` is.
    #[inline]
    fn range(&self, group: Group) -> Range<usize> {
        let group = group as usize;
        let start = if group == 0 { 0 } else { self.ends[group - 1] as usize };
        let end = self.ends.get(group).map_or(self.subscribers.len(), |end| *end as usize);
        start..end
    }
}

/// Where a subscription stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    channel: ChannelKey,
    /// Index into the channel's list, so that leaving a channel of 100,000 takes no search.
    position: u32,
}

/// The subscriptions of one shard.
#[derive(Debug, Default)]
pub struct Hub {
    keys: HashMap<ChannelName, ChannelKey>,
    channels: Table<Channel>,
    subscriptions: Table<Place>,
}

/// What a new subscription is, and whether it changes anything for the other shards.
#[derive(Debug)]
pub struct Subscribed {
    /// To be given back when it ends.
    pub key: SubscriptionKey,
    /// The channel, until its last subscription ends.
    pub channel: ChannelKey,
    /// It is the channel's first on this shard: the moment to tell the broker.
    pub is_first: bool,
}

impl Hub {
    /// Subscribes the connection in `slot` to `name`. `group` is the same for all its subscriptions.
    pub fn subscribe(&mut self, slot: u32, name: &ChannelName, group: Group) -> Subscribed {
        let known = self.keys.get(name).copied();
        let channel = known.unwrap_or_else(|| {
            let channel = Channel { name: name.clone(), subscribers: Vec::new(), ends: [0; _] };
            let key = ChannelKey(self.channels.insert(channel));
            self.keys.insert(name.clone(), key);
            key
        });
        let Channel { subscribers, ends, .. } = self.channels.get_mut(channel.0);
        let mut position = subscribers.len();
        let subscription = self.subscriptions.insert(Place { channel, position: position as u32 });
        subscribers.push(Subscriber { slot, subscription });
        // It moves forward to the end of its group, past one of each group behind that: their first
        // goes to their end.
        for end in ends[group as usize..].iter_mut().rev() {
            let first = *end as usize;
            subscribers.swap(first, position);
            let moved = subscribers[position].subscription;
            self.subscriptions.get_mut(moved).position = position as u32;
            position = first;
            *end += 1;
        }
        self.subscriptions.get_mut(subscription).position = position as u32;
        let key = SubscriptionKey(subscription);
        Subscribed { key, channel, is_first: known.is_none() }
    }

    /// Ends a subscription. Returns the channel if it was the last one here: the moment to tell the
    /// broker.
    pub fn unsubscribe(&mut self, key: SubscriptionKey) -> Option<(ChannelKey, ChannelName)> {
        let Place { channel: key, position } = self.subscriptions.remove(key.0);
        let mut position = position as usize;
        let channel = self.channels.get_mut(key.0);
        let Channel { subscribers, ends, .. } = channel;
        // The place that becomes free moves to the end of its group and of each one behind that: their
        // last goes to their front.
        let group = ends.partition_point(|end| *end as usize <= position);
        for end in &mut ends[group..] {
            *end -= 1;
            let last = *end as usize;
            subscribers.swap(position, last);
            let moved = subscribers[position].subscription;
            if position != last {
                self.subscriptions.get_mut(moved).position = position as u32;
            }
            position = last;
        }
        subscribers.swap_remove(position);
        if let Some(moved) = subscribers.get(position) {
            self.subscriptions.get_mut(moved.subscription).position = position as u32;
        }
        if !subscribers.is_empty() {
            // A channel that had a crowd and lost it gives the memory back.
            if subscribers.capacity() > 64 && subscribers.len() * 4 < subscribers.capacity() {
                subscribers.shrink_to(subscribers.len() * 2);
            }
            return None;
        }
        let Channel { name, .. } = self.channels.remove(key.0);
        self.keys.remove(&name);
        if self.keys.capacity() > 64 && self.keys.len() * 8 < self.keys.capacity() {
            self.keys.shrink_to(self.keys.len() * 2);
        }
        Some((key, name))
    }

    /// The channel called `name`, if anyone here is subscribed to it.
    pub fn find(&self, name: &ChannelName) -> Option<ChannelKey> {
        self.keys.get(name).copied()
    }

    /// The channel that a subscription is to.
    pub fn channel(&self, subscription: &SubscriptionKey) -> ChannelKey {
        self.subscriptions.get(subscription.0).channel
    }

    /// The name of `channel`.
    pub fn name(&self, channel: ChannelKey) -> &ChannelName {
        &self.channels.get(channel.0).name
    }

    /// The name of the channel that a subscription is to.
    pub fn name_of(&self, key: &SubscriptionKey) -> &ChannelName {
        self.name(self.subscriptions.get(key.0).channel)
    }

    /// The slots of those of this group on this shard that are subscribed to `channel`, in no promised
    /// order.
    #[inline]
    pub fn subscribers(
        &self,
        channel: ChannelKey,
        group: Group,
    ) -> impl ExactSizeIterator<Item = u32> {
        let channel = self.channels.get(channel.0);
        channel.subscribers[channel.range(group)].iter().map(|subscriber| subscriber.slot)
    }

    /// Every channel with how many subscriptions it has here.
    pub fn channels(&self) -> impl Iterator<Item = (&ChannelName, usize)> {
        let channels = self.keys.iter();
        channels.map(|(name, key)| (name, self.channels.get(key.0).subscribers.len()))
    }
}

/// Values under small numbers that are used again.
#[derive(Debug)]
struct Table<T> {
    values: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.values[index as usize] = Some(value);
            return index;
        }
        self.values.push(Some(value));
        (self.values.len() - 1) as u32
    }

    fn get(&self, index: u32) -> &T {
        self.values[index as usize].as_ref().expect("a key is used only while its value lasts")
    }

    fn get_mut(&mut self, index: u32) -> &mut T {
        self.values[index as usize].as_mut().expect("a key is used only while its value lasts")
    }

    fn remove(&mut self, index: u32) -> T {
        let value = self.values[index as usize].take().expect("a key is given back once");
        self.free.push(index);
        value
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> ChannelName {
        ChannelName::new(name).unwrap()
    }

    fn subscribers(hub: &Hub, channel: &str, group: Group) -> Vec<u32> {
        let channel = hub.find(&name(channel));
        let mut slots: Vec<u32> =
            channel.map(|channel| hub.subscribers(channel, group).collect()).unwrap_or_default();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn first_subscriber_and_last_leaver_of_a_channel_are_reported_and_no_other() {
        let mut hub = Hub::default();
        let first = hub.subscribe(1, &name("room:1"), Group::Plain);
        let second = hub.subscribe(2, &name("room:1"), Group::Plain);
        assert!(first.is_first && !second.is_first);
        assert_eq!(subscribers(&hub, "room:1", Group::Plain), [1, 2]);
        assert_eq!(hub.unsubscribe(first.key), None);
        assert_eq!(subscribers(&hub, "room:1", Group::Plain), [2]);
        assert_eq!(hub.unsubscribe(second.key), Some((second.channel, name("room:1"))));
        assert_eq!(hub.find(&name("room:1")), None);
        assert!(hub.subscribe(3, &name("room:1"), Group::SeveralPlain).is_first);
    }

    proptest! {
        #[test]
        fn hub_agrees_with_a_plain_list_of_who_is_where(
            steps in proptest::collection::vec((0u8..4, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            struct Held {
                key: SubscriptionKey,
                slot: u32,
                channel: String,
                group: Group,
            }
            let mut hub = Hub::default();
            let mut held: Vec<Held> = Vec::new();
            for (step, (channel, pick, join)) in steps.into_iter().enumerate() {
                let channel = format!("channel {channel}");
                let (slot, group) = (step as u32, Group::ALL[pick.index(Group::ALL.len())]);
                let is_empty =
                    |held: &[Held], channel: &str| held.iter().all(|held| held.channel != channel);
                if join || held.is_empty() {
                    let subscribed = hub.subscribe(slot, &name(&channel), group);
                    prop_assert_eq!(subscribed.is_first, is_empty(&held, &channel));
                    held.push(Held { key: subscribed.key, slot, channel, group });
                } else {
                    let Held { key, channel, .. } = held.swap_remove(pick.index(held.len()));
                    let is_last = is_empty(&held, &channel);
                    prop_assert_eq!(hub.unsubscribe(key).is_some(), is_last);
                }
                for (channel, group) in (0..4).flat_map(|channel| Group::ALL.map(|group| (channel, group))) {
                    let channel = format!("channel {channel}");
                    let of_kind = held.iter().filter(|held| held.channel == channel && held.group == group);
                    let mut slots: Vec<u32> = of_kind.map(|held| held.slot).collect();
                    slots.sort_unstable();
                    prop_assert_eq!(subscribers(&hub, &channel, group), slots);
                }
            }
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for Held { channel, .. } in &held {
                *counts.entry(channel).or_default() += 1;
            }
            let listed: BTreeMap<&str, usize> =
                hub.channels().map(|(name, count)| (name.as_str(), count)).collect();
            prop_assert_eq!(listed, counts);
        }
    }
}
