//! How do bytes and messages get there, on one core? The one place that knows all rooms below.
//!
//! A shard is a thread with a current-thread runtime. It owns its connections, its part of every
//! channel's subscribers, its counters and one read buffer, so nothing on the path of a message is
//! locked. Other threads reach it through [`Handle`] and the broker's lanes only.
//!
//! - [`settings`]: what the operator may decide.
//! - [`orders`]: what other threads ask of a shard, and its answers.
//! - `accept`: its listening sockets; which shard serves a new one.
//! - `handshake`: HTTP until the upgrade.
//! - `stream`: what a connection writes to and reads from: a socket, or TLS over one.
//! - `gate`: how many connections each address has; `admitted`: what is remembered of how a connection
//!   came in; `pace`: how fast it may send.
//! - `client`: an open connection's stream and state; `driver`: the task of it.
//! - `compression`: deflated messages, for one subscriber or for all of them.
//! - `turn`: what was published in this turn; `fan_out`: writing it to the subscribers.
//! - `table`, `wheel`: connections by slot, deadlines by tick.
//! - `users`: who came with a token; `renewal`: what becomes of that, by API, message or time.
//! - `terms`: what the settings come to, and new ones while it runs.
//! - `drain`: the end, and the paced end of some connections before it.

mod accept;
mod admitted;
mod client;
mod compression;
mod drain;
mod driver;
mod fan_out;
mod gate;
mod handshake;
pub mod orders;
mod pace;
mod renewal;
pub mod settings;
mod stream;
mod table;
mod terms;
mod turn;
mod users;
mod wheel;

use std::any::Any;
use std::cell::{Cell, RefCell, RefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Builder, LocalOptions, RuntimeMetrics};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{debug, error};

use crate::admission::addresses::Limits;
use crate::admission::rate::TokenBucket;
use crate::auth::identity::PublishGrant;
use crate::broker::Broker;
use crate::broker::memory::{MemoryBroker, Seat};
use crate::connection::outbound::OutboundQueue;
use crate::connection::{Connection, Initiator};
use crate::hub::{Hub, SubscriptionKey};
use crate::pubsub::{ConnectionId, GatewayId, ShardId};
pub use crate::shard::accept::{Entrance, Listener, ListeningSocket, MAX_BACKLOG, MAX_REFUSED};
use crate::shard::admitted::Shown;
use crate::shard::client::{Channel, Client};
use crate::shard::compression::Codec;
use crate::shard::drain::Stage;
use crate::shard::driver::report_panic;
use crate::shard::fan_out::Pass;
use crate::shard::gate::Gate;
use crate::shard::orders::{Handle, Order};
use crate::shard::pace::Pace;
use crate::shard::settings::Settings;
pub use crate::shard::stream::tls::Identity;
use crate::shard::table::{Occupant, Table};
use crate::shard::terms::Terms;
use crate::shard::turn::{Frame, Turn};
use crate::shard::users::Users;
use crate::shard::wheel::{Entry, Wheel};
use crate::telemetry::counters::{Counters, close_code_index, closed_index};
use crate::wire::close::CloseCode;
use crate::wire::decoder::MAX_KEPT_BYTES;
use crate::wire::frame;
use crate::wire::header::Opcode;

/// The one read buffer of a shard in bytes. Large enough that what a burst leaves in a socket is
/// mostly read in one call, small enough to stay in the second-level cache.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Tasks that run before the socket events are looked at again. tokio's own 61 costs a busy shard one
/// more `epoll_wait` for every 61 connections that have something to read.
const TASKS_PER_EVENT_POLL: u32 = 256;

/// How many connections each shard has, sockets in their handshake included, and what they share.
/// Written when a socket comes and goes, never for a message.
#[derive(Debug)]
pub struct Loads {
    shards: Vec<AtomicUsize>,
    total: AtomicUsize,
    max_connections: AtomicUsize,
    /// Memory of all connections' compression windows.
    window_bytes: AtomicUsize,
    gate: Arc<Gate>,
}

impl Loads {
    /// Loads of `shards` empty shards that may have `max_connections` together.
    pub fn new(shards: u16, max_connections: usize) -> Self {
        let shards = (0..shards).map(|_| AtomicUsize::new(0)).collect();
        let (total, window_bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let gate = Arc::new(Gate::new(max_connections));
        let max_connections = AtomicUsize::new(max_connections);
        Self { shards, total, max_connections, window_bytes, gate }
    }

    /// Connections of all shards together.
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Most connections that are served at a time.
    pub fn max_connections(&self) -> usize {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Allows another number. Those that are open stay, however many they are.
    pub fn set_max_connections(&self, max_connections: usize) {
        self.max_connections.store(max_connections, Ordering::Relaxed);
        self.gate.set_max_connections(max_connections);
    }

    /// Goes by other limits by address and by rate.
    pub fn set_limits(&self, limits: &Limits) {
        self.gate.set_limits(limits, Instant::now());
    }

    /// No further connection would be served.
    pub fn is_full(&self) -> bool {
        self.total() >= self.max_connections()
    }

    /// Addresses that are remembered, for limits of each.
    pub fn addresses(&self) -> usize {
        self.gate.addresses()
    }

    /// Counts one more connection, unless there are as many as are allowed.
    fn try_enter(&self) -> bool {
        let most = self.max_connections();
        let more = |total| (total < most).then_some(total + 1);
        self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Counts one more connection for `shard`, unless there are as many as are allowed.
    fn try_enter_at(&self, shard: ShardId) -> bool {
        let has_entered = self.try_enter();
        if has_entered {
            self.shards[shard.index()].fetch_add(1, Ordering::Relaxed);
        }
        has_entered
    }

    /// Takes `bytes` for the compression windows of one connection, if all together then have at most
    /// `max_bytes`.
    fn try_take_window_bytes(&self, bytes: usize, max_bytes: usize) -> bool {
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= max_bytes);
        self.window_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back_window_bytes(&self, bytes: usize) {
        self.window_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The shard to serve a socket that `here` has accepted, which is counted there: another one only
    /// where that makes a difference, since a hand-over costs a wake-up of its thread.
    fn place(&self, here: ShardId) -> ShardId {
        let load = |index: usize| self.shards[index].load(Ordering::Relaxed);
        let least = (0..self.shards.len()).min_by_key(|index| load(*index)).unwrap_or_default();
        let (mine, lowest) = (load(here.index()), load(least));
        let is_uneven = mine > lowest + 1 + lowest / 16;
        let target = if is_uneven { ShardId::new(least as u16) } else { here };
        self.shards[target.index()].fetch_add(1, Ordering::Relaxed);
        target
    }

    /// What was counted for `from` is `to`'s.
    fn replace(&self, from: ShardId, to: ShardId) {
        self.shards[from.index()].fetch_sub(1, Ordering::Relaxed);
        self.shards[to.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// One connection of `shard` has ended.
    fn leave(&self, shard: ShardId) {
        self.shards[shard.index()].fetch_sub(1, Ordering::Relaxed);
        self.total.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a shard is made of. It can be sent to the shard's thread.
pub struct Seed {
    /// Which one.
    pub id: ShardId,
    /// Whose.
    pub gateway: GatewayId,
    /// The same for all shards.
    pub settings: Arc<Settings>,
    /// Its listening sockets, non-blocking: mostly one for each address.
    pub listeners: Vec<Listener>,
    /// Its end of the broker.
    pub seat: Seat,
    /// Its end of its [`Handle`].
    pub orders: mpsc::Receiver<Order>,
    /// All shards, in their order.
    pub shards: Arc<[Handle]>,
    /// Shared with all shards.
    pub loads: Arc<Loads>,
    /// Its own.
    pub counters: Arc<Counters>,
}

/// One shard, on its thread.
pub(crate) struct Shard {
    id: ShardId,
    gateway: GatewayId,
    settings: RefCell<Arc<Settings>>,
    terms: Cell<Terms>,
    counters: Arc<Counters>,
    shards: Arc<[Handle]>,
    loads: Arc<Loads>,
    table: RefCell<Table>,
    hub: RefCell<Hub>,
    turn: RefCell<Turn>,
    /// Room for what is being flushed.
    pass: RefCell<Pass>,
    codec: Codec,
    broker: MemoryBroker,
    /// Room for what a decoder kept, then for one read. Its content means nothing between two calls
    /// of `driver::process`.
    read_buffer: RefCell<Box<[u8]>>,
    /// Publishers to congested channels that wait for room.
    paused: RefCell<Vec<ConnectionId>>,
    /// Connections that came with a token.
    users: RefCell<Users>,
    wheel: RefCell<Wheel>,
    /// Until when the timers' task sleeps.
    timers_sleep_until: Cell<Option<Instant>>,
    /// A deadline earlier than that was entered.
    timers_changed: Notify,
    /// Something was published in this turn.
    turn_started: Notify,
    /// Sockets in their handshake that will only be told that there is no room.
    refused: Cell<usize>,
    /// Those that are told so over TLS.
    tls_refusals: Cell<TokenBucket>,
    /// Goes forward only.
    stage: Cell<Stage>,
    stop_accepting: Notify,
    /// The table has become empty.
    emptied: Notify,
    /// The drain is over.
    ended: Notify,
    /// One Ping frame for all.
    ping: Bytes,
}

/// Runs a shard on this thread until it has drained. `started` gets the runtime's metrics once the
/// shard accepts connections.
///
/// # Errors
///
/// The kernel refuses what a runtime needs (an epoll instance, an event descriptor).
pub fn run(seed: Seed, started: oneshot::Sender<RuntimeMetrics>) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .event_interval(TASKS_PER_EVENT_POLL)
        .build_local(LocalOptions::default())?;
    let metrics = runtime.metrics();
    runtime.block_on(async move {
        let Seed { id, gateway, settings, listeners, seat, orders, shards, loads, counters } = seed;
        let broker = MemoryBroker::new(seat, Arc::clone(&counters));
        let shard = Rc::new(Shard::new(id, gateway, settings, broker, shards, loads, counters));
        for listener in listeners {
            essential("accept", accept::start(&shard, listener)?);
        }
        essential("orders", orders::take(Rc::clone(&shard), orders));
        essential("fan-out", fan_out::flush(Rc::clone(&shard)));
        essential("timers", timers(Rc::clone(&shard)));
        // Whoever started us may be gone already; then there is nobody to tell.
        _ = started.send(metrics);
        shard.ended.notified().await;
        Ok(())
    })
}

/// Spawns a task without which the shard is of no use. What can go wrong for one connection is caught
/// closer to it; a panic that comes here would leave a shard that looks alive and is not.
fn essential(name: &'static str, task: impl Future<Output = ()> + 'static) {
    let task = tokio::task::spawn_local(task);
    tokio::task::spawn_local(async move {
        if let Err(error) = task.await
            && error.is_panic()
        {
            error!(task = name, "bug: a shard cannot go on; ending the process");
            std::process::exit(1);
        }
    });
}

impl Shard {
    fn new(
        id: ShardId,
        gateway: GatewayId,
        settings: Arc<Settings>,
        broker: MemoryBroker,
        shards: Arc<[Handle]>,
        loads: Arc<Loads>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            id,
            gateway,
            terms: Cell::new(Terms::new(&settings)),
            table: RefCell::new(Table::new(id)),
            hub: RefCell::default(),
            turn: RefCell::default(),
            pass: RefCell::default(),
            codec: Codec::new(&settings.compression),
            broker,
            read_buffer: RefCell::new(vec![0; MAX_KEPT_BYTES + READ_BUFFER_BYTES].into()),
            paused: RefCell::default(),
            users: RefCell::default(),
            wheel: RefCell::new(Wheel::new(Instant::now())),
            timers_sleep_until: Cell::new(None),
            timers_changed: Notify::new(),
            turn_started: Notify::new(),
            refused: Cell::new(0),
            tls_refusals: Cell::new(TokenBucket::full(handshake::tls_refusals(), Instant::now())),
            stage: Cell::new(Stage::Serving),
            stop_accepting: Notify::new(),
            emptied: Notify::new(),
            ended: Notify::new(),
            ping: frame::encode(Opcode::Ping, b""),
            settings: RefCell::new(settings),
            counters,
            shards,
            loads,
        }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Collects a message of `client`, which has leave for that, for its channel.
    #[inline]
    fn publish(&self, client: &Client, _: PublishGrant, own: bool, frame: Frame<'_>, now: Instant) {
        let Some(Channel { key, home }) = client.channel else {
            return;
        };
        let mut turn = self.started_turn();
        let excluded = (!own).then_some(client.id);
        turn.publish(key, home, &self.hub.borrow(), frame, excluded, now);
        self.counters.publications_from_connections.increment();
    }

    /// The turn, to which something will be added now: it will be flushed.
    #[inline]
    fn started_turn(&self) -> RefMut<'_, Turn> {
        let turn = self.turn.borrow_mut();
        if turn.is_empty() {
            self.turn_started.notify_one();
        }
        turn
    }

    /// Has `client` woken when its channel is no longer congested.
    fn pause(&self, client: &Client) {
        if !client.is_paused.replace(true) {
            self.paused.borrow_mut().push(client.id);
        }
    }

    /// Wakes the publishers that waited for room.
    fn resume(&self) {
        for id in self.paused.take() {
            if let Some(client) = self.table.borrow().client(id) {
                client.is_paused.set(false);
                client.wake_driver();
            }
        }
    }

    /// Makes sure that the wheel looks at `client` when its next deadline is due.
    fn arm(&self, client: &Client, connection: &Connection) {
        let Some(deadline) = connection.poll_timeout(&self.timing()) else {
            return;
        };
        let ends = [self.expiry(client), client.ends_at()];
        let end = ends.into_iter().flatten().min().filter(|_| connection.is_open());
        let deadline = end.map_or(deadline, |end| deadline.min(end));
        let armed = client.timer_tick.get();
        let is_before = |tick: u64| (tick as u32).wrapping_sub(armed).cast_signed() < 0;
        if armed == 0 || is_before(self.wheel.borrow_mut().tick(deadline, self.now())) {
            client.timer_tick.set(self.enter_deadline(client.id, deadline) as u32);
        }
    }

    /// Has the wheel look at whoever is called `id` when `deadline` is due. Returns the tick.
    fn enter_deadline(&self, id: ConnectionId, deadline: Instant) -> u64 {
        let ConnectionId { slot, generation, .. } = id;
        let mut wheel = self.wheel.borrow_mut();
        let tick = wheel.tick(deadline, self.now());
        wheel.enter(tick, Entry { slot, generation });
        if self.timers_sleep_until.get().is_none_or(|until| deadline < until) {
            self.timers_changed.notify_one();
        }
        tick
    }

    /// Acts on the deadlines that are due.
    fn handle_timeouts(&self, now: Instant) {
        while let Some((tick, due)) = { self.wheel.borrow_mut().take_due(now) } {
            for Entry { slot, generation } in due {
                let occupant = self.table.borrow().occupant(slot, generation).cloned();
                match occupant {
                    Some(Occupant::Client(client)) if client.timer_tick.get() == tick as u32 => {
                        self.guard(&client, || self.handle_timeout(&client, now));
                    }
                    Some(Occupant::Handshake(handshake)) => {
                        if let Some(deadline) = handshake.handle_timeout(now) {
                            self.enter_deadline(handshake.id, deadline);
                        }
                    }
                    // It was slowed, or entered again for an earlier tick, or has ended.
                    Some(Occupant::Client(client)) => self.resume_reading(&client, tick, now),
                    None => {}
                }
            }
        }
    }

    /// Lets the driver of `client` read again, if it waited for this tick.
    fn resume_reading(&self, client: &Client, tick: u64, now: Instant) {
        if client.pace().is_some_and(|pace| pace.handle_tick(tick)) {
            // It was we who did not listen.
            if let Some(mut connection) = client.try_hold(self) {
                connection.handle_sign_of_life(now);
            }
            client.wake_driver();
        }
    }

    fn handle_timeout(&self, client: &Client, now: Instant) {
        client.timer_tick.set(0);
        let mut connection = client.hold(self);
        let was_waiting = !connection.outbound.is_empty();
        self.close_expired(client, &mut connection, now);
        if client.pace().is_some_and(Pace::is_waiting) {
            connection.handle_sign_of_life(now);
        }
        connection.handle_timeout(now, &self.ping, &self.timing());
        if connection.is_open() && client.ends_at().is_some_and(|end| now >= end) {
            self.counters.connections_aged.increment();
            connection.close(now, CloseCode::GOING_AWAY, "connection age", &self.timing());
            client.socket.borrow().send_elsewhere();
        }
        if connection.ended().is_some() {
            // The peer did not let go in time. What the kernel still has for it, up to some MiB, it would
            // offer for another 100 s to one that has vanished; one that still reads may have it.
            client.socket.borrow().give_up_after(self.timing().close_timeout);
        }
        if !was_waiting {
            _ = client.write_waiting(&mut connection, self);
        }
        self.arm(client, &connection);
        if !connection.is_open() || !connection.outbound.is_empty() || client.has_unsent() {
            client.wake_driver();
        }
    }

    /// Does `work` for `client`. A panic ends that connection; its driver says so to the peer.
    fn guard(&self, client: &Client, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.handle_panic(client, &*panic);
        }
    }

    /// Ends the connection of `client` for a bug that showed while it was served.
    #[cold]
    fn handle_panic(&self, client: &Client, panic: &(dyn Any + Send)) {
        report_panic(&client.id.to_uuid(self.gateway), panic, self);
        if let Some(mut connection) = client.try_hold(self) {
            let (now, code) = (self.now(), CloseCode::INTERNAL_ERROR);
            connection.fail(now, code, "internal error", &self.timing());
            self.arm(client, &connection);
        }
        client.wake_driver();
    }

    /// Takes note that the connection of `client` is over.
    fn handle_end(&self, client: &Client) {
        let ending = client.ending();
        if let Some(mut connection) = client.try_hold(self) {
            let waiting = connection.outbound.bytes();
            self.counters.outbound_queue_bytes.moved(waiting, 0);
            connection.handle_disconnect();
            connection.outbound = OutboundQueue::default();
        }
        let initiator = match ending.initiator {
            Initiator::Local => 0,
            Initiator::Remote => 1,
        };
        let index = closed_index(close_code_index(ending.code), initiator);
        self.counters.connections_closed[index].increment();
        if let Some(mode) = client.coding.mode() {
            self.counters.compressed_connections[mode].moved(1, 0);
        }
        client.subscriptions.take().for_each(|subscription| self.unsubscribe(subscription));
        self.forget_user(client);
        debug!(
            connection = %client.id.to_uuid(self.gateway),
            address = %Shown(client.address()),
            code = ending.code,
            initiator = ?ending.initiator,
            "connection closed"
        );
        self.leave(client.id);
        self.loads.leave(self.id);
        // The last of all: whoever sees it gone can come in its place.
        self.counters.connections.moved(1, 0);
    }

    fn unsubscribe(&self, subscription: SubscriptionKey) {
        self.counters.subscriptions.moved(1, 0);
        let last = self.hub.borrow_mut().unsubscribe(subscription);
        if let Some((key, name)) = last {
            self.turn.borrow_mut().forget(key);
            self.broker.unsubscribe(&name);
        }
    }

    /// Frees the slot of `id`.
    fn leave(&self, id: ConnectionId) {
        self.table.borrow_mut().remove(id);
        if self.table.borrow().len() == 0 {
            self.emptied.notify_one();
        }
    }
}

/// Sleeps until the next deadline, acts on it, and so on.
async fn timers(shard: Rc<Shard>) {
    loop {
        let next = shard.wheel.borrow().next();
        shard.timers_sleep_until.set(next);
        // Without a deadline the sleep ends for nothing once an hour.
        let until = next.unwrap_or_else(|| shard.now() + Duration::from_secs(3600));
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = shard.timers_changed.notified() => {}
        }
        shard.handle_timeouts(shard.now());
    }
}

#[cfg(test)]
mod tests;
