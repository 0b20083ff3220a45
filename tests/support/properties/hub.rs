//! Subscriptions that come and go.

use std::collections::BTreeMap;

use wsgate::hub::{ChannelKey, Group, Hub, SubscriptionKey};
use wsgate::pubsub::ChannelName;

use super::input::Input;

const CHANNELS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "é"];

/// Most connections. With the crowds below that is enough for a channel's list to shrink.
const SLOTS: u32 = 256;

/// Checks [`Hub`] with one input: operations, see [`Run::step`].
///
/// Who is subscribed to what is what a plain list of subscriptions says, and the first and the last
/// of a channel are told.
pub fn hub(data: &[u8]) {
    let mut input = Input::new(data);
    let mut run = Run { hub: Hub::default(), live: Vec::new(), keys: BTreeMap::new() };
    while !input.is_empty() {
        run.step(&mut input);
        run.assert_hub_is_as_the_list();
    }
    while !run.live.is_empty() {
        run.unsubscribe(0);
    }
    run.assert_hub_is_as_the_list();
}

struct Run {
    hub: Hub,
    live: Vec<Subscription>,
    /// What each channel with a subscriber is known as.
    keys: BTreeMap<&'static str, ChannelKey>,
}

struct Subscription {
    slot: u32,
    channel: &'static str,
    key: SubscriptionKey,
}

impl Run {
    /// One operation: its first byte says which, the one or two behind it say with what.
    fn step(&mut self, input: &mut Input) {
        match input.byte() % 16 {
            0..8 => self.subscribe(input.byte().into(), input.choose(&CHANNELS)),
            8..14 if !self.live.is_empty() => {
                let index = input.below(self.live.len());
                self.unsubscribe(index);
            }
            // A crowd comes, or goes.
            14 => {
                let channel = input.choose(&CHANNELS);
                (0..SLOTS / 2).for_each(|slot| self.subscribe(slot, channel));
            }
            15 => {
                let channel = input.choose(&CHANNELS);
                let kept = input.below(8);
                let mut index = 0;
                while index < self.live.len() {
                    if self.live[index].channel == channel
                        && self.live[index].slot % 8 != kept as u32
                    {
                        self.unsubscribe(index);
                    } else {
                        index += 1;
                    }
                }
            }
            _ => {}
        }
    }

    /// Subscribes a connection, once to each channel.
    fn subscribe(&mut self, slot: u32, channel: &'static str) {
        if self.live.iter().any(|live| (live.slot, live.channel) == (slot, channel)) {
            return;
        }
        let subscribed = self.hub.subscribe(slot, &name(channel), group_of(slot));
        let known = self.keys.insert(channel, subscribed.channel);
        assert_eq!(subscribed.is_first, known.is_none(), "the first of {channel}");
        assert!(known.is_none_or(|known| known == subscribed.channel), "{channel} has two keys");
        self.live.push(Subscription { slot, channel, key: subscribed.key });
    }

    fn unsubscribe(&mut self, index: usize) {
        let Subscription { channel, key, .. } = self.live.swap_remove(index);
        let ended = self.hub.unsubscribe(key);
        let is_last = self.live.iter().all(|live| live.channel != channel);
        let expected = is_last.then(|| (self.keys[channel], name(channel)));
        assert_eq!(ended, expected, "the last of {channel}");
        if is_last {
            self.keys.remove(channel);
        }
    }

    fn assert_hub_is_as_the_list(&self) {
        for channel in CHANNELS {
            let key = self.hub.find(&name(channel));
            assert_eq!(key, self.keys.get(channel).copied(), "{channel}");
            let Some(key) = key else {
                continue;
            };
            assert_eq!(self.hub.name(key).as_str(), channel);
            for group in Group::ALL {
                let subscribers = self.hub.subscribers(key, group);
                let length = subscribers.len();
                let mut subscribers: Vec<u32> = subscribers.collect();
                assert_eq!(subscribers.len(), length, "as many as are said");
                subscribers.sort_unstable();
                let live = self.live.iter().filter(|live| live.channel == channel);
                let mut expected: Vec<u32> =
                    live.map(|live| live.slot).filter(|&slot| group_of(slot) == group).collect();
                expected.sort_unstable();
                assert_eq!(subscribers, expected, "{channel}, {group:?}");
            }
        }
        let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
        self.live.iter().for_each(|live| *counted.entry(live.channel).or_default() += 1);
        let channels = self.hub.channels().map(|(name, count)| (name.as_str(), count));
        assert_eq!(channels.collect::<BTreeMap<_, _>>(), counted);
        let mut keys: Vec<usize> = self.keys.values().map(|key| key.index()).collect();
        keys.sort_unstable();
        assert!(keys.is_sorted_by(|left, right| left < right), "two channels have one key");
    }
}

/// How a connection is written to: the same for all its subscriptions.
fn group_of(slot: u32) -> Group {
    Group::ALL[slot as usize % Group::ALL.len()]
}

fn name(name: &str) -> ChannelName {
    ChannelName::new(name).expect("a name of one letter")
}
