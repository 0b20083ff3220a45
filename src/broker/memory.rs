//! The broker of one process.
//!
//! Every channel has a **home** shard, chosen by its name. The home decides the order of the
//! channel's publications, and its part of the [`Directory`] knows which shards want them:
//!
//! ```text
//! publisher's shard --publication--> home --delivery--> each shard with subscribers
//!              and from there its subscribers <-----------'
//! ```
//!
//! A publication that crosses shards is one `Arc` in each lane it goes through. Publications and
//! deliveries have lanes of their own: deliveries are always taken, publications only while the home
//! can pass deliveries on. So two shards that publish to each other at full rate cannot block each
//! other, and a publisher that is too fast is not read from until there is room.
//!
//! Announcements of subscriptions have no bound of their own but a count of permits ([`Broker::permit`]) for the
//! beginning of one; the end of one follows its beginning, so there are never more than subscriptions
//! and permits together.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::broker::directory::Directory;
use crate::broker::lane::{self, Weigh};
use crate::broker::{Broker, Inbound};
use crate::pubsub::{Batch, ChannelName, ShardId};
use crate::telemetry::counters::Counters;

/// Announced subscriptions that one home may have waiting.
const MAX_WAITING_SUBSCRIBES: usize = 4_096;

/// What an entry costs beside its frames, in bytes.
const ENTRY_BYTES: usize = 128;

/// Bounds of each lane of a shard's mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In entries.
    pub entries: usize,
    /// In bytes.
    pub bytes: usize,
}

/// A batch on its way from one shard to another.
#[derive(Debug)]
struct Parcel {
    channel: ChannelName,
    batch: Arc<Batch>,
}

impl Weigh for Parcel {
    fn bytes(&self) -> usize {
        self.batch.weight() + ENTRY_BYTES
    }
}

/// A shard's first subscriber came, or its last one went.
#[derive(Debug)]
struct Announcement {
    channel: ChannelName,
    shard: ShardId,
    subscribed: bool,
}

/// How to reach one shard.
#[derive(Clone, Debug)]
struct Address {
    publications: lane::Sender<Parcel>,
    deliveries: lane::Sender<Parcel>,
    announcements: mpsc::UnboundedSender<Announcement>,
    subscribe_permits: Arc<Semaphore>,
}

/// What reaches one shard. It can be sent to the shard's thread, where it becomes a
/// [`MemoryBroker`].
#[derive(Debug)]
pub struct Seat {
    shard: ShardId,
    addresses: Arc<[Address]>,
    publications: lane::Receiver<Parcel>,
    deliveries: lane::Receiver<Parcel>,
    announcements: mpsc::UnboundedReceiver<Announcement>,
}

/// Publishes from any thread.
#[derive(Clone, Debug)]
pub struct Publisher {
    addresses: Arc<[Address]>,
}

/// The home of the channel has no room for more publications now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Congested;

/// The lanes between `shards` shards.
pub fn connect(shards: u16, bounds: Bounds) -> (Vec<Seat>, Publisher) {
    let mut addresses = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..shards {
        let (publications, publications_receiver) = lane::lane(bounds.entries, bounds.bytes);
        let (deliveries, deliveries_receiver) = lane::lane(bounds.entries, bounds.bytes);
        let (announcements, announcements_receiver) = mpsc::unbounded_channel();
        let subscribe_permits = Arc::new(Semaphore::new(MAX_WAITING_SUBSCRIBES));
        addresses.push(Address { publications, deliveries, announcements, subscribe_permits });
        receivers.push((publications_receiver, deliveries_receiver, announcements_receiver));
    }
    let addresses: Arc<[Address]> = addresses.into();
    let seats = receivers.into_iter().enumerate();
    let seats = seats.map(|(index, (publications, deliveries, announcements))| Seat {
        shard: ShardId::new(index as u16),
        addresses: Arc::clone(&addresses),
        publications,
        deliveries,
        announcements,
    });
    (seats.collect(), Publisher { addresses })
}

fn home(channel: &ChannelName, shards: usize) -> ShardId {
    if shards == 1 {
        return ShardId::new(0);
    }
    // Its keys are fixed, so every shard finds the same home.
    let mut hasher = DefaultHasher::new();
    channel.hash(&mut hasher);
    ShardId::new((hasher.finish() % shards as u64) as u16)
}

impl Publisher {
    /// Publishes `batch` to the subscribers of `channel` on every shard.
    ///
    /// # Errors
    ///
    /// There is no room: the publisher has to try again later.
    pub fn publish(&self, channel: ChannelName, batch: Arc<Batch>) -> Result<(), Congested> {
        let address = &self.addresses[home(&channel, self.addresses.len()).index()];
        address.publications.try_send(Parcel { channel, batch }).map_err(|_| Congested)
    }
}

/// One shard's end of the broker.
pub struct MemoryBroker {
    shard: ShardId,
    addresses: Arc<[Address]>,
    /// About the channels whose home is this shard.
    directory: RefCell<Directory>,
    inbound: RefCell<Lanes>,
    /// Publications to other homes, by home.
    publications: Vec<Rc<Outbox>>,
    /// Deliveries of this home, by shard.
    deliveries: Vec<Rc<Outbox>>,
    room: Rc<Room>,
    counters: Arc<Counters>,
}

struct Lanes {
    publications: lane::Receiver<Parcel>,
    deliveries: lane::Receiver<Parcel>,
    announcements: mpsc::UnboundedReceiver<Announcement>,
}

/// Whether something was congested and is not any more.
#[derive(Default)]
struct Room {
    came: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Room {
    fn announce(&self) {
        self.came.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Parcels for one lane that had no room. Bounded by what publishers send between two looks at
/// [`Broker::is_congested`]: one turn.
struct Outbox {
    lane: lane::Sender<Parcel>,
    waiting: RefCell<VecDeque<Parcel>>,
    /// A task is sending what waits.
    is_blocked: Cell<bool>,
}

impl Outbox {
    fn new(lane: lane::Sender<Parcel>) -> Rc<Self> {
        Rc::new(Self { lane, waiting: RefCell::default(), is_blocked: Cell::new(false) })
    }

    fn send(self: &Rc<Self>, parcel: Parcel, room: &Rc<Room>, counters: &Counters) {
        if self.is_blocked.get() {
            self.waiting.borrow_mut().push_back(parcel);
            return;
        }
        let Err(parcel) = self.lane.try_send(parcel) else {
            return;
        };
        counters.mailbox_full.increment();
        self.is_blocked.set(true);
        self.waiting.borrow_mut().push_back(parcel);
        let (outbox, room) = (Rc::clone(self), Rc::clone(room));
        tokio::task::spawn_local(async move {
            loop {
                let Some(parcel) = outbox.waiting.borrow_mut().pop_front() else {
                    break;
                };
                outbox.lane.send(parcel).await;
            }
            outbox.is_blocked.set(false);
            room.announce();
        });
    }
}

impl MemoryBroker {
    /// Takes `seat` on its shard's thread.
    pub fn new(seat: Seat, counters: Arc<Counters>) -> Self {
        let Seat { shard, addresses, publications, deliveries, announcements } = seat;
        let outboxes = |lane: fn(&Address) -> &lane::Sender<Parcel>| {
            addresses.iter().map(|address| Outbox::new(lane(address).clone())).collect()
        };
        Self {
            shard,
            directory: RefCell::default(),
            inbound: RefCell::new(Lanes { publications, deliveries, announcements }),
            publications: outboxes(|address| &address.publications),
            deliveries: outboxes(|address| &address.deliveries),
            room: Rc::default(),
            counters,
            addresses,
        }
    }

    fn announce(&self, channel: &ChannelName, subscribed: bool) {
        let home = self.home(channel);
        let announcement = Announcement { channel: channel.clone(), shard: self.shard, subscribed };
        if home == self.shard {
            self.take_announcement(announcement);
        } else {
            // A home that has ended delivers nothing any more.
            _ = self.addresses[home.index()].announcements.send(announcement);
        }
    }

    /// Learns of every subscription that was announced so far. Whoever was told that its subscription
    /// stands was announced before, so it is known to all that is published after.
    fn take_announcements(&self) {
        while let Ok(announcement) = self.inbound.borrow_mut().announcements.try_recv() {
            self.take_announcement(announcement);
        }
    }

    fn take_announcement(&self, announcement: Announcement) {
        let Announcement { channel, shard, subscribed } = announcement;
        let mut directory = self.directory.borrow_mut();
        if subscribed {
            if shard != self.shard {
                self.addresses[self.shard.index()].subscribe_permits.add_permits(1);
            }
            directory.add(&channel, shard);
        } else {
            directory.remove(&channel, shard);
        }
        self.counters.channels.set(directory.channels() as u64);
    }

    /// Whether some shard has no room for deliveries of this home.
    fn is_home_congested(&self) -> bool {
        self.deliveries.iter().any(|outbox| outbox.is_blocked.get())
    }
}

impl Broker for MemoryBroker {
    type Permit = OwnedSemaphorePermit;

    fn home(&self, channel: &ChannelName) -> ShardId {
        home(channel, self.addresses.len())
    }

    async fn permit(&self, channel: &ChannelName) -> OwnedSemaphorePermit {
        let permits = &self.addresses[self.home(channel).index()].subscribe_permits;
        Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed")
    }

    fn subscribe(&self, channel: &ChannelName, permit: OwnedSemaphorePermit) {
        if self.home(channel) != self.shard {
            // The home gives it back when it has taken the announcement.
            permit.forget();
        }
        self.announce(channel, true);
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.announce(channel, false);
    }

    fn publish(
        &self,
        channel: &ChannelName,
        home: ShardId,
        batch: Arc<Batch>,
    ) -> Option<Arc<Batch>> {
        debug_assert_eq!(home, self.home(channel), "a channel never changes its home");
        if home != self.shard {
            let parcel = Parcel { channel: channel.clone(), batch };
            self.publications[home.index()].send(parcel, &self.room, &self.counters);
            return None;
        }
        self.take_announcements();
        let mut here = false;
        for shard in self.directory.borrow().shards(channel) {
            if *shard == self.shard {
                here = true;
            } else {
                let parcel = Parcel { channel: channel.clone(), batch: Arc::clone(&batch) };
                self.deliveries[shard.index()].send(parcel, &self.room, &self.counters);
            }
        }
        here.then_some(batch)
    }

    fn is_congested(&self, home: ShardId) -> bool {
        if home == self.shard {
            self.is_home_congested()
        } else {
            self.publications[home.index()].is_blocked.get()
        }
    }

    fn poll_inbound(&self, cx: &mut Context<'_>) -> Poll<Inbound> {
        if self.room.came.replace(false) {
            return Poll::Ready(Inbound::Room);
        }
        self.room.waker.replace(Some(cx.waker().clone()));
        let mut inbound = self.inbound.borrow_mut();
        while let Poll::Ready(Some(announcement)) = inbound.announcements.poll_recv(cx) {
            self.take_announcement(announcement);
        }
        if let Poll::Ready(Some(Parcel { channel, batch })) = inbound.deliveries.poll_recv(cx) {
            return Poll::Ready(Inbound::Delivery(channel, batch));
        }
        if !self.is_home_congested()
            && let Poll::Ready(Some(Parcel { channel, batch })) = inbound.publications.poll_recv(cx)
        {
            return Poll::Ready(Inbound::Publication(channel, batch));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
