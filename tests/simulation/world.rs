//! One run: what happens next, and a look at every promise after it.
//!
//! Time passes only while nobody has anything to do, as on a machine that is fast enough; what has
//! something to do at the same time is done in any order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wsgate::connection::Timing;
use wsgate::connection::outbound::{Limit, SlowConsumerPolicy};
use wsgate::hub::Group;
use wsgate::pubsub::{BatchBuilder, ChannelName, ConnectionId, ShardId};
use wsgate::wire::close::CloseCode;
use wsgate::wire::decoder::MAX_KEPT_BYTES;
use wsgate::wire::frame::{self, MAX_HEADER_BYTES, MessageKind};

use crate::frames::{BINARY, TEXT};
use crate::peer::Peer;
use crate::promises::{Id, Messages, Origin, TICK, Terms};
use crate::random::Random;
use crate::shard::{Ask, Client, Ready, Settings, Shard};

const STEPS: usize = 700;

const MAX_CONNECTIONS: usize = 12;

/// Steps that are shown when a promise is broken.
const SHOWN_STEPS: usize = 25;

/// A turn of all that are woken comes to rest long before it was repeated as often.
const MAX_ROUNDS: usize = 10_000;

/// Room for whatever may wait.
const MUCH_ROOM: usize = 1 << 30;

/// What may happen, and how often it does beside the others in most runs.
const STEPS_AND_WEIGHTS: [(Step, usize); 19] = [
    (Step::Connect, 10),
    (Step::Say, 40),
    (Step::SayPing, 5),
    (Step::SayPong, 2),
    (Step::SayClose, 3),
    (Step::Violate, 1),
    (Step::End, 1),
    (Step::Reset, 1),
    (Step::Arrive, 40),
    (Step::Stall, 10),
    (Step::Read, 20),
    (Step::React, 10),
    (Step::Drive, 30),
    (Step::Flush, 20),
    (Step::PublishElsewhere, 15),
    (Step::SendDirectly, 4),
    (Step::Disconnect, 2),
    (Step::Fail, 1),
    (Step::PassTime, 5),
];

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A handshake ends.
    Connect,
    /// A peer says a message, or something else, which is then under way.
    Say,
    SayPing,
    SayPong,
    SayClose,
    Violate,
    /// A peer shuts its sending side down.
    End,
    /// A connection is reset.
    Reset,
    /// Something that is under way arrives.
    Arrive,
    /// A peer reads nothing more: its socket takes a few bytes or none.
    Stall,
    /// A peer makes room.
    Read,
    /// A peer does what the gateway's control frames ask for.
    React,
    /// One of the drivers that are woken has its turn.
    Drive,
    /// The turn ends.
    Flush,
    /// The API or another shard publishes to a channel.
    PublishElsewhere,
    /// The API sends to one connection.
    SendDirectly,
    /// The API closes one connection.
    Disconnect,
    /// A bug shows while one connection is served.
    Fail,
    /// Nobody has anything to do for a while.
    PassTime,
}

/// A shard, its connections and their peers.
pub(crate) struct World {
    seed: u64,
    random: Random,
    weights: Vec<(Step, usize)>,
    shard: Shard,
    channels: Vec<ChannelName>,
    /// By slot.
    clients: Vec<Option<(Client, Peer)>>,
    /// By slot: how often it was used.
    generations: Vec<u32>,
    /// Connections so far.
    peers: usize,
    messages: Messages,
    /// By channel: who hears it. What the hub says must agree with this.
    subscribers: BTreeMap<usize, BTreeMap<u32, Group>>,
    /// The channels of which the other shards know that they have a subscriber here.
    announced: BTreeSet<String>,
    /// The latest steps, each with the slot it was about.
    steps: VecDeque<(usize, Step, Option<usize>)>,
}

/// Runs the schedule that follows from `seed`. Returns what happened how often.
pub(crate) fn run(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed);
    for step in 0..STEPS {
        world.step(step);
    }
    world.deliver_everything();
    world.close_everything();
    std::mem::take(&mut world.shard.counts)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let settings = settings(&mut random);
        // The one clock of the run starts here and stands still but for `pass_time`.
        let start = Instant::now();
        let channels = 1 + random.below(4);
        let names = (0..channels).map(|channel| ChannelName::new(&format!("channel {channel}")));
        // A run in which some things never happen, or happen all the time, comes to states that an
        // even mixture of everything does not.
        let mut weigh = |(step, weight): (Step, usize)| {
            let weight = weight * random.one_of(&[0, 1, 1, 1, 4]);
            let is_needed =
                matches!(step, Step::Connect | Step::Arrive | Step::Drive | Step::Flush);
            (step, if is_needed { weight.max(3) } else { weight })
        };
        Self {
            seed,
            weights: STEPS_AND_WEIGHTS.map(&mut weigh).to_vec(),
            random,
            shard: Shard::new(settings, start),
            channels: names.map(|name| name.expect("a good name")).collect(),
            clients: Vec::new(),
            generations: Vec::new(),
            peers: 0,
            messages: Messages::default(),
            subscribers: BTreeMap::new(),
            announced: BTreeSet::new(),
            steps: VecDeque::new(),
        }
    }

    fn step(&mut self, number: usize) {
        let step = self.any_step();
        let slot = match step {
            Step::Connect | Step::Flush | Step::PublishElsewhere | Step::PassTime => None,
            Step::Drive => self.any_slot(|client| client.is_woken),
            // What a peer does in the middle of a closing handshake would come to pass too rarely.
            _ if self.random.percent(20) => self.any_slot(|client| !client.connection.is_open()),
            _ => self.any_slot(|_| true),
        };
        if self.steps.len() == SHOWN_STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back((number, step, slot));
        match (step, slot) {
            (Step::Connect, _) => self.connect(),
            (Step::Flush, _) => self.flush(),
            (Step::PublishElsewhere, _) => self.publish_elsewhere(),
            (Step::PassTime, _) => self.pass_some_time(),
            (Step::Drive, Some(slot)) => self.drive(slot),
            (_, Some(slot)) => self.happen_to(slot, step),
            (_, None) => {}
        }
    }

    fn any_step(&mut self) -> Step {
        let sum = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut place = self.random.below(sum);
        for (step, weight) in &self.weights {
            match place.checked_sub(*weight) {
                Some(rest) => place = rest,
                None => return *step,
            }
        }
        unreachable!("the place is below the sum of all weights")
    }

    fn any_slot(&mut self, is_meant: impl Fn(&Client) -> bool) -> Option<usize> {
        let slots = self.clients.iter().enumerate().filter_map(|(slot, client)| {
            client.as_ref().filter(|(client, _)| is_meant(client)).map(|_| slot)
        });
        let slots: Vec<usize> = slots.collect();
        (!slots.is_empty()).then(|| self.random.one_of(&slots))
    }

    /// Something happens to one connection or on its peer's side.
    fn happen_to(&mut self, slot: usize, step: Step) {
        let Some((client, peer)) = &mut self.clients[slot] else {
            return;
        };
        let (random, shard, messages) = (&mut self.random, &mut self.shard, &mut self.messages);
        let record = &mut client.record;
        let max_message_bytes = shard.settings.terms.max_message_bytes;
        match step {
            Step::Say | Step::SayPing | Step::SayPong | Step::SayClose | Step::Violate
                if peer.is_silent(client.socket.arrived_bytes()) => {}
            Step::Say => {
                let origin = match client.ask {
                    Ask::Echo => Origin::Echo,
                    Ask::Publish { channel, .. } => Origin::Channel(channel),
                };
                peer.say_message(origin, max_message_bytes, record, messages, random);
            }
            Step::SayPing => peer.say_ping(record, random),
            Step::SayPong => peer.say_pong(record, random),
            Step::SayClose => {
                let code = random.one_of(&[None, Some(1000), Some(1001), Some(3000), Some(4999)]);
                peer.say_close(code, record, random);
                if !client.connection.is_open() {
                    // Else the closing handshake is mostly over before.
                    client.arrive(peer, MUCH_ROOM);
                }
            }
            Step::Violate => peer.violate(max_message_bytes, record, random),
            Step::React => peer.react(record, random),
            Step::End => peer.end(),
            Step::Reset => {
                client.socket.reset();
                client.is_woken = true;
            }
            Step::Arrive => {
                let bytes = if random.percent(50) { MUCH_ROOM } else { random.between(1, 5_000) };
                client.arrive(peer, bytes);
            }
            Step::Stall => {
                client.socket.set_room(if random.percent(50) { 0 } else { 1 + random.below(60) })
            }
            Step::Read => {
                let room = if random.percent(40) { MUCH_ROOM } else { random.between(1, 3_000) };
                client.make_room(room);
            }
            Step::SendDirectly => {
                let opcode = random.one_of(&[TEXT, BINARY]);
                let bytes = random.between(1, max_message_bytes);
                let id = messages.make(Origin::Direct, None, opcode, bytes);
                if client.connection.is_open() {
                    client.record.offer(Origin::Direct, id);
                    client.deliver_frame(encode(id, messages), shard);
                }
            }
            Step::Disconnect => {
                let code = random.one_of(&[CloseCode::NORMAL, CloseCode::GOING_AWAY]);
                client.close(code, "because a test says so", shard);
            }
            Step::Fail => client.fail(shard),
            Step::Connect | Step::Drive | Step::Flush | Step::PublishElsewhere | Step::PassTime => {
                unreachable!("they are about nobody or have their own way")
            }
        }
        self.check(slot);
    }

    fn connect(&mut self) {
        let slot = match self.clients.iter().position(Option::is_none) {
            Some(slot) => slot,
            None if self.clients.len() < MAX_CONNECTIONS => {
                self.clients.push(None);
                self.generations.push(0);
                self.clients.len() - 1
            }
            None => return,
        };
        let generation = self.generations[slot];
        let id = ConnectionId { shard: ShardId::new(0), slot: slot as u32, generation };
        let random = &mut self.random;
        let mut heard: Vec<usize> =
            (0..self.channels.len()).filter(|_| random.percent(30)).collect();
        if heard.is_empty() && random.percent(70) {
            heard.push(random.below(self.channels.len()));
        }
        let group = if heard.len() > 1 { Group::SeveralPlain } else { Group::Plain };
        let (mut ask, mut subscriptions) = (Ask::Echo, Vec::new());
        for channel in heard {
            let name = &self.channels[channel];
            let subscribed = self.shard.hub.subscribe(id.slot, name, group);
            let subscribers = self.subscribers.entry(channel).or_default();
            assert_eq!(subscribed.is_first, subscribers.is_empty(), "the first of {name}");
            if subscribed.is_first {
                self.announced.insert(name.to_string());
            }
            subscribers.insert(id.slot, group);
            subscriptions.push(subscribed.key);
            ask = Ask::Publish { key: subscribed.channel, channel, own: self.random.percent(60) };
        }
        let room = if self.random.percent(70) { MUCH_ROOM } else { self.random.below(200) };
        let client = Client::new(id, ask, subscriptions, room, &self.shard);
        self.peers += 1;
        self.clients[slot] = Some((client, Peer::new(self.peers, &mut self.random)));
        self.check_hub();
    }

    fn publish_elsewhere(&mut self) {
        let channel = self.random.below(self.channels.len());
        let max_bytes = self.shard.settings.terms.max_message_bytes;
        let mut builder = BatchBuilder::new(self.shard.now);
        let mut ids = Vec::new();
        for _ in 0..=self.random.below(3) {
            let (opcode, bytes) =
                (self.random.one_of(&[TEXT, BINARY]), self.random.between(1, max_bytes));
            let id = self.messages.make(Origin::Channel(channel), None, opcode, bytes);
            builder.push(encode(id, &self.messages), None);
            ids.push(id);
        }
        self.shard.publish_batch(
            channel,
            &self.channels[channel],
            &Arc::new(builder.finish()),
            &ids,
        );
    }

    // What the shard does.

    fn drive(&mut self, slot: usize) {
        if let Some((client, _)) = &mut self.clients[slot] {
            client.drive(&mut self.shard, &self.messages);
            let is_over = client.is_over;
            self.check(slot);
            if is_over {
                self.handle_end(slot);
            }
        }
    }

    fn handle_end(&mut self, slot: usize) {
        let Some((client, _)) = self.clients[slot].take() else {
            return;
        };
        let timing = &self.shard.settings.terms.timing;
        client.record.check_end(&client.connection, self.shard.now, timing);
        for subscription in client.subscriptions {
            if let Some((key, name)) = self.shard.hub.unsubscribe(subscription) {
                self.shard.forget(key);
                assert!(self.announced.remove(name.as_str()), "{name} was not announced");
            }
        }
        for subscribers in self.subscribers.values_mut() {
            subscribers.remove(&(slot as u32));
        }
        self.generations[slot] += 1;
        self.check_hub();
    }

    /// Writes what the turn has to the subscribers.
    fn flush(&mut self) {
        let ready = self.shard.take_turn(&self.channels);
        let mut gathered = Vec::new();
        for (index, batch) in ready.iter().enumerate() {
            self.offer(batch, Group::Plain);
            self.deliver_to_each(batch, Group::Plain);
            self.offer(batch, Group::SeveralPlain);
            if ready.len() == 1 {
                self.deliver_to_each(batch, Group::SeveralPlain);
            } else {
                let slots = self.shard.subscribers(batch.key, Group::SeveralPlain).into_iter();
                gathered.extend(slots.map(|slot| (slot, index)));
            }
        }
        gathered.sort_unstable();
        for group in gathered.chunk_by(|one, next| one.0 == next.0) {
            if let Some((client, _)) = &mut self.clients[group[0].0 as usize] {
                let batches: Vec<&Ready> = group.iter().map(|(_, index)| &ready[*index]).collect();
                client.deliver_together(&batches, &mut self.shard);
            }
        }
        self.check_all();
    }

    fn deliver_to_each(&mut self, batch: &Ready, group: Group) {
        for slot in self.shard.subscribers(batch.key, group) {
            if let Some((client, _)) = &mut self.clients[slot as usize] {
                client.deliver_directly(batch, &mut self.shard);
            }
        }
    }

    /// Takes note of what those of this group are to get.
    fn offer(&mut self, batch: &Ready, group: Group) {
        let subscribers = self.subscribers.get(&batch.channel).into_iter().flatten();
        for (slot, _) in subscribers.filter(|(_, theirs)| **theirs == group) {
            let Some((client, _)) = &mut self.clients[*slot as usize] else {
                continue;
            };
            if client.record.is_open() {
                for (id, excluded) in &batch.messages {
                    if *excluded != Some(client.id) {
                        client.record.offer(Origin::Channel(batch.channel), *id);
                    }
                }
            }
        }
    }

    /// Has everybody do what they have to, until there is nothing left.
    fn come_to_rest(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let is_woken = |client: &Option<(Client, Peer)>| {
                client.as_ref().is_some_and(|(client, _)| client.is_woken)
            };
            let woken: Vec<usize> =
                (0..self.clients.len()).filter(|slot| is_woken(&self.clients[*slot])).collect();
            if woken.is_empty() && !self.shard.has_turn() {
                return;
            }
            woken.into_iter().for_each(|slot| self.drive(slot));
            if self.shard.has_turn() {
                self.flush();
            }
        }
        panic!("the shard does not come to rest");
    }

    // Time.

    fn pass_some_time(&mut self) {
        let longest = self.shard.settings.terms.timing.idle_timeout.as_millis() as usize;
        let milliseconds = match self.random.below(8) {
            0..=3 => self.random.below(100),
            4..=6 => self.random.below(longest / 4),
            _ => self.random.below(longest + 1_000),
        };
        self.pass_time(Duration::from_millis(milliseconds as u64));
    }

    /// Lets `duration` pass, with a stop at each deadline.
    fn pass_time(&mut self, duration: Duration) {
        self.come_to_rest();
        let until = self.shard.now + duration;
        loop {
            let clients = self.clients.iter().flatten();
            let next = clients.filter_map(|(client, _)| client.next_look()).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                break;
            };
            self.shard.now = next;
            (0..self.clients.len()).for_each(|slot| self.handle_timeout(slot));
            self.come_to_rest();
        }
        self.shard.now = until;
        self.check_all();
    }

    fn handle_timeout(&mut self, slot: usize) {
        let now = self.shard.now;
        let is_due =
            |(client, _): &&mut (Client, Peer)| client.next_look().is_some_and(|look| look <= now);
        if let Some((client, _)) = self.clients[slot].as_mut().filter(is_due) {
            let before = client.record.before_time_out();
            client.handle_timeout(&mut self.shard);
            self.check(slot);
            if let Some((client, _)) = &self.clients[slot] {
                client.record.after_time_out(&before);
            }
        }
    }

    // The end of a run.

    /// Lets everything arrive and makes room for everything: then nobody who is left misses anything.
    fn deliver_everything(&mut self) {
        for (client, peer) in self.clients.iter_mut().flatten() {
            client.arrive(peer, MUCH_ROOM);
            client.make_room(MUCH_ROOM);
        }
        self.come_to_rest();
        self.check_all();
        for (client, _) in self.clients.iter().flatten() {
            if client.connection.is_open() {
                assert!(client.connection.outbound.is_empty(), "there was room for everything");
                assert_eq!(client.record.missing(), 0, "messages that nobody dropped");
            }
        }
    }

    /// Closes everybody, as a drain does. Whatever their peers do, none is left after the time that
    /// the closing handshake has.
    fn close_everything(&mut self) {
        for slot in 0..self.clients.len() {
            if let Some((client, _)) = &mut self.clients[slot] {
                client.close(CloseCode::GOING_AWAY, "the gateway is draining", &mut self.shard);
                self.check(slot);
            }
        }
        self.pass_time(self.shard.settings.terms.timing.close_timeout + TICK);
        assert_eq!(self.clients.iter().flatten().count(), 0, "connections that are left");
        assert_eq!(self.shard.hub.channels().count(), 0, "channels without a subscriber");
        assert!(self.announced.is_empty(), "other shards still send {:?}", self.announced);
    }

    // A look at the promises.

    fn check_all(&mut self) {
        (0..self.clients.len()).for_each(|slot| self.check(slot));
        self.check_hub();
    }

    fn check(&mut self, slot: usize) {
        if let Some((client, _)) = &mut self.clients[slot] {
            let settings = &self.shard.settings;
            let max_answer_bytes = match client.ask {
                Ask::Echo => settings.max_echo_bytes(),
                // The one Pong that may wait does not count.
                Ask::Publish { .. } => 0,
            };
            let terms = Terms { max_answer_bytes, ..settings.terms };
            let taken = client.socket.look();
            let (connection, now) = (&client.connection, self.shard.now);
            client.record.check(connection, &taken, now, &terms, &self.messages);
        }
    }

    /// The hub agrees with the plain list of who hears what.
    fn check_hub(&self) {
        for (channel, subscribers) in &self.subscribers {
            let name = &self.channels[*channel];
            let key = self.shard.hub.find(name);
            assert_eq!(key.is_some(), !subscribers.is_empty(), "whether {name} has a subscriber");
            assert_eq!(key.is_some(), self.announced.contains(name.as_str()), "{name} announced");
            for group in [Group::Plain, Group::SeveralPlain] {
                let mut slots = key.map_or(Vec::new(), |key| self.shard.subscribers(key, group));
                slots.sort_unstable();
                let listed = subscribers.iter().filter(|(_, theirs)| **theirs == group);
                let listed: Vec<u32> = listed.map(|(slot, _)| *slot).collect();
                assert_eq!(slots, listed, "the subscribers of {name} in the group {group:?}");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, steps, shard, .. } = self;
            eprintln!("the last steps, each with the slot it was about: {steps:?}");
            eprintln!("the settings: {:?}", shard.settings);
            eprintln!(
                "to see it again: WSGATE_SIMULATION_SEED={seed} cargo test --test simulation"
            );
        }
    }
}

impl Client {
    fn arrive(&mut self, peer: &mut Peer, bytes: usize) {
        self.socket.arrive(peer.arrive(bytes));
        if peer.has_ended() {
            self.socket.end();
        }
        self.is_woken = true;
    }

    fn make_room(&mut self, bytes: usize) {
        self.socket.set_room(bytes);
        self.is_woken = true;
    }
}

impl Settings {
    /// What may wait of what a connection gets back: half of a queue keeps it from being read, and one
    /// read and one message may come on top.
    fn max_echo_bytes(&self) -> usize {
        let largest = self.terms.max_message_bytes + MAX_HEADER_BYTES;
        2 * self.half_queue_bytes() + MAX_KEPT_BYTES + largest
    }
}

fn settings(random: &mut Random) -> Settings {
    let max_message_bytes = random.one_of(&[100, 100, 1_000, 6_000, 20_000]);
    let least_queue_bytes = max_message_bytes + MAX_HEADER_BYTES;
    // The closing policy acts only once for each connection, so it gets more runs.
    let policies = [
        SlowConsumerPolicy::Close,
        SlowConsumerPolicy::Close,
        SlowConsumerPolicy::DropOldest,
        SlowConsumerPolicy::DropNewest,
    ];
    let limit = Limit {
        max_bytes: least_queue_bytes + random.below(2 * max_message_bytes),
        policy: random.one_of(&policies),
    };
    let seconds =
        |random: &mut Random, choices: &[u64]| Duration::from_secs(random.one_of(choices));
    let timing = Timing {
        ping_interval: seconds(random, &[0, 1, 4, 25]),
        idle_timeout: seconds(random, &[3, 10, 60]),
        close_timeout: seconds(random, &[1, 5]),
    };
    // What a connection may have to wait for depends on what it asks for, so this is set with a check.
    let terms = Terms { timing, limit, max_message_bytes, max_answer_bytes: 0 };
    Settings {
        terms,
        read_buffer_bytes: random.one_of(&[50, 500, 4_000, 30_000]),
        max_turn_bytes: random.one_of(&[500, 10_000, 1 << 20]),
    }
}

/// The message as a server frame.
pub(crate) fn encode(id: Id, messages: &Messages) -> bytes::Bytes {
    let message = messages.get(id);
    let kind = if message.opcode == TEXT { MessageKind::Text } else { MessageKind::Binary };
    frame::encode(kind.opcode(), &message.payload)
}
