//! Some shards' ends of the broker on one thread, where the test decides which shard looks into its
//! mailbox, and when.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::task::LocalSet;

use super::*;

const ROOMY: Bounds = Bounds { entries: 1_024, bytes: 1 << 20 };

/// All shards of one gateway, and what the subscribers of each have been handed.
struct Shards {
    brokers: Vec<MemoryBroker>,
    publisher: Publisher,
    heard: Vec<Vec<String>>,
    /// How often each shard was told that there is room again.
    rooms: Vec<usize>,
}

impl Shards {
    fn is_congested(&self, shard: usize, channel: &ChannelName) -> bool {
        self.brokers[shard].is_congested(self.brokers[shard].home(channel))
    }

    fn new(count: u16, bounds: Bounds) -> Self {
        let (seats, publisher) = connect(count, bounds);
        let brokers = seats.into_iter().map(|seat| MemoryBroker::new(seat, Arc::default()));
        let count = usize::from(count);
        let (heard, rooms) = (vec![Vec::new(); count], vec![0; count]);
        Self { brokers: brokers.collect(), publisher, heard, rooms }
    }

    /// A channel whose home is the shard `home`.
    fn channel(&self, home: usize) -> ChannelName {
        let names = (0..).map(|number| ChannelName::new(&format!("channel-{number}")).unwrap());
        let mut at_home = names.filter(|name| self.brokers[0].home(name).index() == home);
        at_home.next().expect("names without end")
    }

    async fn subscribe(&self, shard: usize, channel: &ChannelName) {
        let permit = self.brokers[shard].permit(channel).await;
        self.brokers[shard].subscribe(channel, permit);
    }

    /// What a shard does at the end of a turn in which a connection has published `text`.
    fn publish(&mut self, shard: usize, channel: &ChannelName, text: &str) {
        let home = self.brokers[shard].home(channel);
        let handed = self.brokers[shard].publish(channel, home, Arc::new(batch(text)));
        self.hear(shard, handed);
    }

    fn hear(&mut self, shard: usize, batch: Option<Arc<Batch>>) {
        self.heard[shard].extend(batch.iter().flat_map(|batch| texts(batch)));
    }

    /// Has a shard look into its mailbox once; whether there was something.
    fn take_one(&mut self, shard: usize) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match self.brokers[shard].poll_inbound(&mut cx) {
            Poll::Pending => return false,
            Poll::Ready(Inbound::Room) => self.rooms[shard] += 1,
            Poll::Ready(Inbound::Delivery(_, batch)) => self.hear(shard, Some(batch)),
            Poll::Ready(Inbound::Publication(channel, publication)) => {
                let home = self.brokers[shard].home(&channel);
                let handed = self.brokers[shard].publish(&channel, home, publication);
                self.hear(shard, handed);
            }
        }
        true
    }

    /// Has every shard look into its mailbox until nothing is under way any more.
    async fn settle(&mut self) {
        loop {
            let mut took_something = false;
            for shard in 0..self.brokers.len() {
                took_something |= self.take_one(shard);
            }
            // Whatever waits for a lane gets its turn.
            tokio::task::yield_now().await;
            let is_blocked = self.brokers.iter().any(|broker| {
                let outboxes = broker.publications.iter().chain(&broker.deliveries);
                outboxes.into_iter().any(|outbox| outbox.is_blocked.get())
            });
            if !took_something && !is_blocked {
                return;
            }
        }
    }
}

fn batch(text: &str) -> Batch {
    let frame = [&[0x81, text.len() as u8], text.as_bytes()].concat();
    Batch::single(frame.into(), Instant::now())
}

/// The payloads of a batch of short text frames.
fn texts(batch: &Batch) -> Vec<String> {
    let mut rest = &batch.segments().concat()[..];
    let mut texts = Vec::new();
    while let [_, bytes, frames @ ..] = rest {
        let (text, behind) = frames.split_at(usize::from(*bytes));
        texts.push(String::from_utf8(text.to_vec()).unwrap());
        rest = behind;
    }
    texts
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    LocalSet::new().block_on(&runtime, test());
}

#[test]
fn all_shards_hear_the_order_of_the_home() {
    run(async || {
        let mut shards = Shards::new(3, ROOMY);
        let channel = shards.channel(1);
        for shard in 0..3 {
            shards.subscribe(shard, &channel).await;
        }
        shards.settle().await;
        for round in 0..10 {
            for shard in [2, 0, 1] {
                shards.publish(shard, &channel, &format!("{shard}:{round}"));
            }
            // One looks later than the other.
            shards.take_one(round % 3);
        }
        shards.settle().await;
        assert_eq!(shards.heard[1].len(), 30);
        assert_eq!(shards.heard[0], shards.heard[1]);
        assert_eq!(shards.heard[2], shards.heard[1]);
        for shard in 0..3 {
            let of_shard = |text: &&String| text.starts_with(&format!("{shard}:"));
            let of_shard: Vec<&String> = shards.heard[0].iter().filter(of_shard).collect();
            let expected: Vec<String> = (0..10).map(|round| format!("{shard}:{round}")).collect();
            assert_eq!(of_shard, expected.iter().collect::<Vec<_>>());
        }
    });
}

#[test]
fn publication_after_a_subscription_reaches_it_wherever_it_is_published() {
    for (home, subscriber, publisher) in (0..27).map(|case| (case / 9 % 3, case / 3 % 3, case % 3))
    {
        run(async || {
            let mut shards = Shards::new(3, ROOMY);
            let channel = shards.channel(home);
            shards.subscribe(subscriber, &channel).await;
            // No shard has looked into its mailbox since.
            shards.publish(publisher, &channel, "by a connection");
            shards.publisher.publish(channel.clone(), Arc::new(batch("by the API"))).unwrap();
            shards.settle().await;
            let mut heard = shards.heard[subscriber].clone();
            // A home hands out what its own connections publish at once.
            heard.sort();
            assert_eq!(
                heard,
                ["by a connection", "by the API"],
                "home {home}, subscriber on {subscriber}, publisher on {publisher}"
            );
        });
    }
}

#[test]
fn publication_is_one_and_the_same_in_every_mailbox_that_it_goes_through() {
    run(async || {
        let shards = Shards::new(3, ROOMY);
        let channel = shards.channel(0);
        for shard in [0, 1, 2] {
            shards.subscribe(shard, &channel).await;
        }
        let published = Arc::new(batch("by the API"));
        shards.publisher.publish(channel.clone(), Arc::clone(&published)).unwrap();
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(Inbound::Publication(_, at_home)) = shards.brokers[0].poll_inbound(cx)
        else {
            panic!("its home decides its order");
        };
        let home = ShardId::new(0);
        let mut handed = vec![shards.brokers[0].publish(&channel, home, at_home).unwrap()];
        for shard in [1, 2] {
            match shards.brokers[shard].poll_inbound(cx) {
                Poll::Ready(Inbound::Delivery(_, batch)) => handed.push(batch),
                other => panic!("shard {shard} has a subscriber, but got {other:?}"),
            }
        }
        assert!(handed.iter().all(|batch| Arc::ptr_eq(batch, &published)));
        assert_eq!(Arc::strong_count(&published), 1 + handed.len(), "nobody else has it");
    });
}

#[test]
fn shard_without_a_subscriber_hears_nothing() {
    run(async || {
        let mut shards = Shards::new(3, ROOMY);
        let channel = shards.channel(0);
        shards.subscribe(1, &channel).await;
        shards.subscribe(2, &channel).await;
        shards.settle().await;
        shards.publish(0, &channel, "first");
        shards.settle().await;
        shards.brokers[2].unsubscribe(&channel);
        shards.settle().await;
        shards.publish(2, &channel, "second");
        shards.settle().await;
        assert_eq!(
            shards.heard,
            [vec![], vec!["first".to_owned(), "second".to_owned()], vec!["first".to_owned()]]
        );
        shards.brokers[1].unsubscribe(&channel);
        shards.settle().await;
        assert_eq!(shards.brokers[0].counters.channels.value(), 0);
    });
}

#[test]
fn home_is_congested_while_a_delivery_finds_no_room_and_says_when_there_is() {
    run(async || {
        let mut shards = Shards::new(2, Bounds { entries: 1, bytes: 1 << 20 });
        let channel = shards.channel(0);
        shards.subscribe(1, &channel).await;
        shards.settle().await;
        shards.publish(0, &channel, "first");
        assert!(!shards.is_congested(0, &channel), "one entry fits");
        shards.publish(0, &channel, "second");
        assert!(shards.is_congested(0, &channel));
        assert_eq!(shards.brokers[0].counters.mailbox_full.value(), 1);

        // Meanwhile the home passes nothing on, so it takes no publications of others either.
        shards.publish(1, &channel, "third");
        assert!(!shards.take_one(0), "a publication has to wait for the deliveries before it");
        assert_eq!(shards.rooms[0], 0);

        shards.settle().await;
        assert!(!shards.is_congested(0, &channel));
        assert_eq!(shards.rooms[0], 1);
        assert_eq!(shards.heard[1], ["first", "second", "third"]);
    });
}

#[test]
fn publisher_is_congested_while_the_home_takes_no_more_and_is_told_when_it_does() {
    run(async || {
        let mut shards = Shards::new(2, Bounds { entries: 2, bytes: 1 << 20 });
        let (channel, elsewhere) = (shards.channel(0), shards.channel(1));
        shards.subscribe(0, &channel).await;
        for text in ["first", "second"] {
            shards.publish(1, &channel, text);
            assert!(!shards.is_congested(1, &channel));
        }
        shards.publish(1, &channel, "third");
        assert!(shards.is_congested(1, &channel));
        assert!(!shards.is_congested(1, &elsewhere), "another home has room");
        shards.settle().await;
        assert!(!shards.is_congested(1, &channel));
        assert_eq!(shards.rooms, [0, 1]);
        assert_eq!(shards.heard[0], ["first", "second", "third"]);
    });
}

#[test]
fn publication_from_outside_is_refused_while_the_mailbox_is_full_in_entries_or_in_bytes() {
    let large = "x".repeat(100);
    for (bounds, text) in [
        (Bounds { entries: 2, bytes: 1 << 20 }, "small"),
        (Bounds { entries: 1_024, bytes: 2 * (ENTRY_BYTES + 102) + 50 }, &*large),
    ] {
        run(async || {
            let mut shards = Shards::new(2, bounds);
            let channel = shards.channel(1);
            shards.subscribe(0, &channel).await;
            let publish =
                |shards: &Shards| shards.publisher.publish(channel.clone(), Arc::new(batch(text)));
            assert_eq!(publish(&shards), Ok(()));
            assert_eq!(publish(&shards), Ok(()));
            assert_eq!(publish(&shards), Err(Congested));
            assert!(shards.take_one(1));
            assert_eq!(publish(&shards), Ok(()), "room for as much as was taken");
            shards.settle().await;
            assert_eq!(shards.heard[0], [text; 3], "what was refused is not heard");
        });
    }
}

#[test]
fn nothing_is_lost_and_nobody_is_stuck_where_every_lane_holds_one_entry() {
    run(async || {
        let mut shards = Shards::new(3, Bounds { entries: 1, bytes: 200 });
        let channels = [0, 1, 2].map(|home| shards.channel(home));
        for channel in &channels {
            for shard in 0..3 {
                shards.subscribe(shard, channel).await;
            }
        }
        shards.settle().await;
        let mut expected = Vec::new();
        for round in 0..50 {
            // Everybody publishes to everybody, and nobody looks whether that is too fast.
            for shard in 0..3 {
                for (home, channel) in channels.iter().enumerate() {
                    let text = format!("{home}:{shard}:{round}");
                    shards.publish(shard, channel, &text);
                    expected.push(text);
                }
            }
            shards.take_one(round % 3);
            tokio::task::yield_now().await;
        }
        shards.settle().await;
        expected.sort();
        for heard in &shards.heard {
            let mut sorted = heard.clone();
            sorted.sort();
            assert_eq!(sorted, expected, "each exactly once");
        }
        for home in 0..3 {
            let of_home = |heard: &Vec<String>| -> VecDeque<String> {
                let prefix = format!("{home}:");
                heard.iter().filter(|text| text.starts_with(&prefix)).cloned().collect()
            };
            let order = of_home(&shards.heard[0]);
            assert!(shards.heard.iter().all(|heard| of_home(heard) == order), "one order for all");
            for shard in 0..3 {
                let prefix = format!("{home}:{shard}:");
                let rounds = order.iter().filter_map(|text| text.strip_prefix(&prefix));
                let rounds: Vec<usize> = rounds.map(|round| round.parse().unwrap()).collect();
                assert!(rounds.is_sorted(), "in the order in which shard {shard} published");
            }
        }
    });
}

#[test]
fn announcements_that_wait_at_a_home_are_bounded_and_taking_them_makes_room() {
    run(async || {
        let mut shards = Shards::new(2, ROOMY);
        let channel = shards.channel(0);
        for _ in 0..MAX_WAITING_SUBSCRIBES {
            shards.subscribe(1, &channel).await;
            shards.brokers[1].unsubscribe(&channel);
        }
        let permits = Arc::clone(&shards.brokers[0].addresses[0].subscribe_permits);
        assert_eq!(permits.available_permits(), 0, "the next subscriber has to wait");
        // tokio hands a task no more than 128 at a time, so at most that many are needed.
        for _ in 0..MAX_WAITING_SUBSCRIBES {
            shards.settle().await;
        }
        assert_eq!(permits.available_permits(), MAX_WAITING_SUBSCRIBES);
        // A subscription at its home is not announced, so its permit comes back by itself.
        shards.subscribe(0, &channel).await;
        assert_eq!(permits.available_permits(), MAX_WAITING_SUBSCRIBES);
    });
}
