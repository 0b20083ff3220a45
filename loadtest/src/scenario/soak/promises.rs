//! What channels promise, and whether it was kept. It knows no socket and no clock: publications and
//! deliveries go in, breaches come out.
//!
//! Of each follower of a channel it is checked that it gets every message that is published after it
//! has joined, once, each publisher's in the order sent; and of all followers of a channel that they
//! get them in the same order.
//!
//! The order of a channel is what those get who were there before its first message and have missed
//! none. Who comes later finds its place in that order by its first message, which the others may not
//! have got yet: until then its messages are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::scenario::soak::verdicts::{Breach, Invariant};

/// How much of a channel's order is kept: followers may be so many messages apart.
const MAX_ORDER: usize = 1 << 16;

/// How many messages are kept of a follower that has not found its place in the order. Beyond, its
/// order is not compared with that of others any more.
const MAX_WAITING: usize = 4_096;

/// How many missing messages of a follower may still come late; of more it is said at once that they
/// are lost.
const MAX_MISSING: usize = 1_024;

/// One of those who hear a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FollowerId(u64);

/// All channels, who publishes there, and who hears it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The channel of each publisher, and how many messages it has published.
    publishers: Vec<(u32, u32)>,
    channels: Vec<Order>,
    followers: BTreeMap<FollowerId, Follower>,
    next_follower: u64,
}

/// A message: its publisher, and which of that publisher's it is.
type Message = (u16, u32);

/// The order of a channel's messages.
#[derive(Debug, Default)]
struct Order {
    messages: VecDeque<Message>,
    /// The place of the first of them.
    first: u64,
    places: HashMap<Message, u64>,
}

#[derive(Debug)]
struct Follower {
    /// For a person.
    name: String,
    channel: u32,
    next: BTreeMap<u16, Next>,
    missing: BTreeSet<Message>,
    place: Place,
}

/// Which message of a publisher comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// This one, or an earlier one that was on its way when the follower joined.
    AtMost(u32),
    Exactly(u32),
}

/// Where a follower is in the order of its channel.
#[derive(Debug)]
enum Place {
    /// Its next message is the one at this place.
    At(u64),
    /// These have come and are not found in the order yet.
    Waiting(Vec<Message>),
    Unknown,
}

impl Order {
    fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    fn push(&mut self, message: Message) {
        self.places.insert(message, self.end());
        self.messages.push_back(message);
        if self.messages.len() > MAX_ORDER
            && let Some(oldest) = self.messages.pop_front()
        {
            self.places.remove(&oldest);
            self.first += 1;
        }
    }

    /// Goes from `place` on over `messages`. Some of the order may be missing in them, which is a loss
    /// if it does not come later; but nothing may come after what others got later.
    ///
    /// # Errors
    ///
    /// A message that does, and the one before it.
    fn follow(&mut self, place: u64, messages: &[Message]) -> Result<Place, (Message, Message)> {
        let mut next = place;
        for (index, message) in messages.iter().enumerate() {
            if next < self.first {
                return Ok(Place::Unknown);
            }
            match self.places.get(message) {
                Some(place) if *place >= next => next = place + 1,
                Some(_) => {
                    let before = next.checked_sub(1 + self.first);
                    let before = before.and_then(|before| self.messages.get(before as usize));
                    return Err((*message, before.copied().unwrap_or(*message)));
                }
                None if next == self.end() => {
                    self.push(*message);
                    next += 1;
                }
                // Others are yet to get it.
                None => return Ok(Place::Waiting(messages[index..].to_vec())),
            }
        }
        Ok(Place::At(next))
    }
}

impl Follower {
    fn breach(&self, invariant: Invariant, text: &str) -> Breach {
        Breach { invariant, text: format!("channel {}: {} {text}", self.channel, self.name) }
    }

    fn lost(&self, publisher: u16, numbers: std::ops::Range<u32>) -> Breach {
        let text = match numbers.len() {
            1 => format!("has not got message {} of publisher {publisher}", numbers.start),
            count => format!(
                "has not got {count} messages of publisher {publisher}, {} to {}",
                numbers.start,
                numbers.end - 1
            ),
        };
        self.breach(Invariant::Loss, &text)
    }

    /// Takes note of a message's number. Returns whether it is the next of its publisher.
    fn count(&mut self, publisher: u16, number: u32) -> Result<bool, Breach> {
        let next = self.next.entry(publisher).or_insert(Next::AtMost(0));
        let expected = match *next {
            Next::AtMost(most) => number.min(most),
            Next::Exactly(next) => next,
        };
        if number < expected {
            if self.missing.remove(&(publisher, number)) {
                let text = format!(
                    "got message {number} of publisher {publisher} after its message {}",
                    expected - 1
                );
                return Err(self.breach(Invariant::Order, &text));
            }
            let text = format!("got message {number} of publisher {publisher} again");
            return Err(self.breach(Invariant::Repetition, &text));
        }
        *next = Next::Exactly(number + 1);
        if number == expected {
            return Ok(true);
        }
        self.place = Place::Waiting(Vec::new());
        if self.missing.len() + (number - expected) as usize > MAX_MISSING {
            return Err(self.lost(publisher, expected..number));
        }
        self.missing.extend((expected..number).map(|missing| (publisher, missing)));
        Ok(false)
    }

    /// Compares with what others have got.
    fn compare(&mut self, message: Message, order: &mut Order) -> Result<(), Breach> {
        let place = std::mem::replace(&mut self.place, Place::Unknown);
        let followed = match place {
            Place::At(place) => order.follow(place, &[message]),
            Place::Waiting(mut waiting) => {
                waiting.push(message);
                match order.places.get(&waiting[0]) {
                    Some(place) => order.follow(*place, &waiting),
                    None if waiting.len() > MAX_WAITING => Ok(Place::Unknown),
                    None => Ok(Place::Waiting(waiting)),
                }
            }
            Place::Unknown => Ok(Place::Unknown),
        };
        match followed {
            Ok(place) => {
                self.place = place;
                Ok(())
            }
            Err(((publisher, number), (other, others_number))) => {
                self.place = Place::Waiting(Vec::new());
                let text = format!(
                    "got message {number} of publisher {publisher} after message {others_number} of \
                     publisher {other}, which others got later"
                );
                Err(self.breach(Invariant::SharedOrder, &text))
            }
        }
    }
}

impl Ledger {
    /// So many channels, and the channel of each publisher.
    pub(super) fn new(channels: u32, publishers: impl IntoIterator<Item = u32>) -> Self {
        Self {
            publishers: publishers.into_iter().map(|channel| (channel, 0)).collect(),
            channels: (0..channels).map(|_| Order::default()).collect(),
            followers: BTreeMap::new(),
            next_follower: 0,
        }
    }

    /// The number of the next message of `publisher`, which is about to be sent.
    pub(super) fn publish(&mut self, publisher: u16) -> u32 {
        let (_, published) = &mut self.publishers[usize::from(publisher)];
        *published += 1;
        *published - 1
    }

    /// The latest message of `publisher` was refused: nobody gets it, and its number comes again.
    pub(super) fn take_back(&mut self, publisher: u16) {
        self.publishers[usize::from(publisher)].1 -= 1;
    }

    /// Somebody has joined a channel, and gets what is published from now on.
    pub(super) fn join(&mut self, channel: u32, name: &str) -> FollowerId {
        let id = FollowerId(self.next_follower);
        self.next_follower += 1;
        let publishers = self.publishers.iter().zip(0u16..);
        let own = publishers.filter(|((its_channel, _), _)| *its_channel == channel);
        let next: BTreeMap<u16, Next> =
            own.map(|((_, published), publisher)| (publisher, Next::AtMost(*published))).collect();
        let is_first = next.values().all(|next| matches!(next, Next::AtMost(0)));
        let place = if is_first { Place::At(0) } else { Place::Waiting(Vec::new()) };
        let (name, missing) = (name.to_owned(), BTreeSet::new());
        self.followers.insert(id, Follower { name, channel, next, missing, place });
        id
    }

    /// The channel of a publisher; `None` where there is no such publisher.
    pub(super) fn channel_of(&self, publisher: u16) -> Option<u32> {
        self.publishers.get(usize::from(publisher)).map(|(channel, _)| *channel)
    }

    /// A follower has got a message.
    ///
    /// # Errors
    ///
    /// What is wrong with that.
    pub(super) fn note(
        &mut self,
        id: FollowerId,
        (publisher, number): Message,
    ) -> Result<(), Breach> {
        let follower = self.followers.get_mut(&id).expect("only who has joined hears something");
        match self.publishers.get(usize::from(publisher)) {
            Some((channel, published)) if *channel == follower.channel && number < *published => {}
            Some((channel, published)) => {
                let text = format!(
                    "got message {number} of publisher {publisher}, which has published {published} \
                     messages on channel {channel}"
                );
                return Err(follower.breach(Invariant::Foreign, &text));
            }
            None => {
                let text = format!("got a message of a publisher {publisher}, who does not exist");
                return Err(follower.breach(Invariant::Foreign, &text));
            }
        }
        follower.count(publisher, number)?;
        let order = &mut self.channels[follower.channel as usize];
        follower.compare((publisher, number), order)
    }

    /// A follower goes. What was published lately it may have missed, but nothing in between.
    pub(super) fn leave(&mut self, id: FollowerId) -> Option<Breach> {
        let follower = self.followers.remove(&id)?;
        let (publisher, number) = *follower.missing.first()?;
        Some(follower.lost(publisher, number..number + 1))
    }

    /// Whether everybody has got the latest message of each publisher.
    pub(super) fn is_caught_up(&self) -> bool {
        self.followers.values().all(|follower| {
            follower.next.iter().all(|(publisher, next)| {
                let (Next::AtMost(next) | Next::Exactly(next)) = *next;
                next == self.publishers[usize::from(*publisher)].1
            })
        })
    }

    /// Nothing is on its way any more: what anybody misses now is lost. Each is told once.
    pub(super) fn settle(&mut self) -> Vec<Breach> {
        let mut breaches = Vec::new();
        for follower in self.followers.values_mut() {
            for (publisher, number) in std::mem::take(&mut follower.missing) {
                breaches.push(follower.lost(publisher, number..number + 1));
            }
            let ends = follower.next.iter().filter_map(|(publisher, next)| {
                let (Next::AtMost(next) | Next::Exactly(next)) = *next;
                let (_, published) = self.publishers[usize::from(*publisher)];
                (next < published).then_some((*publisher, next..published))
            });
            for (publisher, numbers) in ends.collect::<Vec<_>>() {
                follower.next.insert(publisher, Next::Exactly(numbers.end));
                follower.place = Place::Waiting(Vec::new());
                breaches.push(follower.lost(publisher, numbers));
            }
        }
        breaches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishers 0 and 1 on channel 0, publisher 2 on channel 1; each has published so many.
    fn ledger() -> Ledger {
        Ledger::new(2, [0, 0, 1])
    }

    fn publish(ledger: &mut Ledger, publishers: &[u16]) {
        for publisher in publishers {
            ledger.publish(*publisher);
        }
    }

    fn hears(
        ledger: &mut Ledger,
        id: FollowerId,
        messages: &[Message],
    ) -> Vec<(Invariant, String)> {
        let noted = messages.iter().map(|message| ledger.note(id, *message));
        let breaches = noted.filter_map(Result::err);
        breaches.map(|breach| (breach.invariant, breach.text)).collect()
    }

    fn breach(invariant: Invariant, text: &str) -> (Invariant, String) {
        (invariant, text.to_owned())
    }

    #[test]
    fn who_hears_all_in_one_order_finds_nothing_wrong() {
        let mut ledger = ledger();
        let first = ledger.join(0, "first");
        let second = ledger.join(0, "second");
        publish(&mut ledger, &[0, 1, 0, 1]);
        let messages = [(0, 0), (1, 0), (1, 1), (0, 1)];
        assert_eq!(hears(&mut ledger, first, &messages[..2]), []);
        assert!(!ledger.is_caught_up());
        assert_eq!(hears(&mut ledger, second, &messages), []);
        assert_eq!(hears(&mut ledger, first, &messages[2..]), []);
        assert!(ledger.is_caught_up());
        assert_eq!(ledger.settle(), []);
    }

    #[test]
    fn lost_message_is_found_when_everything_has_arrived_and_told_once() {
        let mut ledger = ledger();
        let id = ledger.join(0, "subscriber 5");
        publish(&mut ledger, &[0, 0, 0, 1]);
        assert_eq!(hears(&mut ledger, id, &[(0, 0), (0, 2)]), []);
        let settled = ledger.settle().into_iter().map(|breach| (breach.invariant, breach.text));
        let expected = [
            breach(Invariant::Loss, "channel 0: subscriber 5 has not got message 1 of publisher 0"),
            breach(Invariant::Loss, "channel 0: subscriber 5 has not got message 0 of publisher 1"),
        ];
        assert_eq!(settled.collect::<Vec<_>>(), expected);
        assert_eq!(ledger.settle(), []);
        publish(&mut ledger, &[0, 1]);
        assert_eq!(hears(&mut ledger, id, &[(1, 1), (0, 3)]), []);
        assert_eq!(ledger.leave(id), None);
    }

    #[test]
    fn messages_lost_at_the_end_are_told_as_a_range() {
        let mut ledger = ledger();
        ledger.join(1, "subscriber 9");
        publish(&mut ledger, &[2, 2, 2]);
        assert!(!ledger.is_caught_up());
        let text = "channel 1: subscriber 9 has not got 3 messages of publisher 2, 0 to 2";
        assert_eq!(ledger.settle()[0].text, text);
        assert!(ledger.is_caught_up());
    }

    #[test]
    fn messages_of_a_publisher_out_of_order_are_no_loss() {
        let mut ledger = ledger();
        let id = ledger.join(0, "subscriber 1");
        publish(&mut ledger, &[0, 0, 0]);
        let found = hears(&mut ledger, id, &[(0, 0), (0, 2), (0, 1)]);
        let text = "channel 0: subscriber 1 got message 1 of publisher 0 after its message 2";
        assert_eq!(found, [breach(Invariant::Order, text)]);
        assert_eq!(ledger.settle(), []);
    }

    #[test]
    fn message_that_comes_twice_is_a_repetition() {
        let mut ledger = ledger();
        let id = ledger.join(0, "subscriber 1");
        publish(&mut ledger, &[0, 0]);
        let found = hears(&mut ledger, id, &[(0, 0), (0, 0), (0, 1), (0, 0)]);
        let text = "channel 0: subscriber 1 got message 0 of publisher 0 again";
        assert_eq!(
            found,
            [breach(Invariant::Repetition, text), breach(Invariant::Repetition, text)]
        );
    }

    #[test]
    fn message_of_another_channel_and_message_that_nobody_sent_are_foreign() {
        let mut ledger = ledger();
        let id = ledger.join(0, "subscriber 1");
        publish(&mut ledger, &[0, 2]);
        let found = hears(&mut ledger, id, &[(2, 0), (0, 1), (7, 0)]);
        assert!(found.iter().all(|(invariant, _)| *invariant == Invariant::Foreign), "{found:?}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn two_orders_of_one_channel_are_found() {
        let mut ledger = ledger();
        let first = ledger.join(0, "first");
        let second = ledger.join(0, "second");
        publish(&mut ledger, &[0, 1, 0]);
        assert_eq!(hears(&mut ledger, first, &[(0, 0), (1, 0), (0, 1)]), []);
        let found = hears(&mut ledger, second, &[(1, 0), (0, 0), (0, 1)]);
        let text = "channel 0: second got message 0 of publisher 0 after message 0 of publisher 1, \
                    which others got later";
        assert_eq!(found, [breach(Invariant::SharedOrder, text)]);
    }

    #[test]
    fn loss_is_no_other_order_whoever_hears_it_first() {
        for lossy_is_first in [true, false] {
            let mut ledger = ledger();
            let lossy = ledger.join(0, "lossy");
            let whole = ledger.join(0, "whole");
            publish(&mut ledger, &[0, 1, 0, 1]);
            let all = [(0, 0), (1, 0), (0, 1), (1, 1)];
            let but_one = [(0, 0), (0, 1), (1, 1)];
            let order: [(FollowerId, &[Message]); 2] = match lossy_is_first {
                true => [(lossy, &but_one), (whole, &all)],
                false => [(whole, &all), (lossy, &but_one)],
            };
            for (id, messages) in order {
                assert_eq!(hears(&mut ledger, id, messages), []);
            }
            let lost = ledger.settle();
            assert_eq!(lost.len(), 1, "{lost:?}");
            assert_eq!(lost[0].text, "channel 0: lossy has not got message 0 of publisher 1");
        }
    }

    #[test]
    fn who_joins_later_may_begin_with_what_was_on_its_way_but_misses_nothing_after() {
        let mut ledger = ledger();
        let steady = ledger.join(0, "steady");
        publish(&mut ledger, &[0, 1, 0]);
        let late = ledger.join(0, "late");
        let later = ledger.join(0, "later");
        publish(&mut ledger, &[1, 0, 0]);
        // It is ahead of the steady one, and compared as soon as that one has got there.
        assert_eq!(hears(&mut ledger, late, &[(0, 1), (1, 1), (0, 2)]), []);
        let order = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3)];
        assert_eq!(hears(&mut ledger, steady, &order), []);
        assert_eq!(hears(&mut ledger, late, &[(0, 3)]), []);
        assert_eq!(ledger.leave(late), None);
        assert_eq!(hears(&mut ledger, later, &[(0, 3)]), []);
        let lost = ledger.leave(later).expect("it has missed one").text;
        assert_eq!(lost, "channel 0: later has not got message 2 of publisher 0");
    }

    #[test]
    fn who_joins_later_is_held_to_the_same_order() {
        let mut ledger = ledger();
        let steady = ledger.join(0, "steady");
        publish(&mut ledger, &[0]);
        let late = ledger.join(0, "late");
        publish(&mut ledger, &[0, 1]);
        assert_eq!(hears(&mut ledger, late, &[(0, 1)]), []);
        assert_eq!(hears(&mut ledger, steady, &[(0, 0), (1, 0), (0, 1)]), []);
        let text = "channel 0: late got message 0 of publisher 1 after message 1 of publisher 0, which \
                    others got later";
        let found = hears(&mut ledger, late, &[(1, 0)]);
        assert_eq!(found, [breach(Invariant::SharedOrder, text)]);
    }

    #[test]
    fn refused_publication_is_missed_by_nobody() {
        let mut ledger = ledger();
        let id = ledger.join(1, "subscriber 1");
        ledger.publish(2);
        ledger.take_back(2);
        assert!(ledger.is_caught_up());
        assert_eq!(ledger.publish(2), 0);
        assert_eq!(hears(&mut ledger, id, &[(2, 0)]), []);
    }

    #[test]
    fn order_is_kept_within_its_bound() {
        let mut ledger = Ledger::new(1, [0]);
        let id = ledger.join(0, "subscriber 1");
        let slow = ledger.join(0, "slow");
        for number in 0..MAX_ORDER as u32 + 10 {
            ledger.publish(0);
            assert_eq!(ledger.note(id, (0, number)), Ok(()));
        }
        assert_eq!(ledger.channels[0].messages.len(), MAX_ORDER);
        assert_eq!(ledger.channels[0].places.len(), MAX_ORDER);
        // Too far behind to be compared, but not to miss something.
        assert_eq!(hears(&mut ledger, slow, &[(0, 0), (0, 2)]), []);
        assert!(ledger.leave(slow).is_some());
    }
}
