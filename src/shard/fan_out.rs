//! Writing publications to the subscribers: directly, one system call for each, no task woken.
//!
//! One pass flushes a turn: everything that was published here and everything that came from other
//! shards meanwhile. A subscriber of one channel is written to at once. One of several channels may
//! have something from each of them, so those are gathered, and get one vectored write at the end. So do
//! those whose frames are of their own making, for they have to be looked at one by one anyway.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::{consume_budget, yield_now};

use crate::broker::Broker;
use crate::hub::{ChannelKey, Group, Hub};
use crate::pubsub::Batch;
use crate::shard::Shard;
use crate::shard::client::{Offer, Tally};
use crate::shard::table::Table;
use crate::shard::turn::{Collected, Task};
use crate::wire::extensions::WindowBits;

/// Writes between two looks at the clock. What the histogram of the lag is told is late by no more
/// than as many; a look for each batch would cost a batch for one subscriber a tenth of its time.
const WRITES_PER_LOOK: u64 = 32;

/// A pass of as many deliveries is followed by a look at the sockets. Below that the look would cost a
/// good part of the pass, and there is one after every 256 tasks anyway.
const MAX_DELIVERIES_UNSEEN: u64 = 64;

/// Entries of each list of a [`Pass`] that it keeps room for.
const MAX_KEPT_ENTRIES: usize = 4_096;

/// Room for what is being flushed, used again for every pass.
#[derive(Default)]
pub(crate) struct Pass {
    collected: Vec<Collected>,
    ready: Vec<Ready>,
    gathered: Vec<Gathered>,
}

/// A batch for the subscribers of a channel on this shard.
struct Ready {
    channel: ChannelKey,
    batch: Arc<Batch>,
}

/// One batch for one of those that hear several channels. Sorted, the batches of one subscriber stand
/// together, in the order in which their channels became active.
#[derive(Clone, Copy)]
struct Gathered {
    slot: u32,
    /// Index into [`Pass::ready`].
    batch: u32,
}

impl Gathered {
    /// One number, since two fields take several times as long to compare.
    fn place(&self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.batch)
    }
}

/// Flushes each turn in which something was published.
pub(crate) async fn flush(shard: Rc<Shard>) {
    loop {
        shard.turn_started.notified().await;
        let before = shard.counters.deliveries.value();
        shard.flush_turn();
        if shard.counters.deliveries.value() - before < MAX_DELIVERIES_UNSEEN {
            consume_budget().await;
        } else {
            // Other shards can have the next turn full by now, and so on: the sockets come between.
            yield_now().await;
        }
    }
}

impl Shard {
    /// Publishes what this turn has collected and writes what is for subscribers here. Returns how
    /// many system calls wrote it.
    pub(crate) fn flush_turn(&self) -> u64 {
        let mut pass = self.pass.take();
        self.turn.borrow_mut().take(&mut pass.collected);
        for Collected { key, task, batch } in pass.collected.drain(..) {
            let batch = batch.finish();
            let (key, batch) = match task {
                Task::Deliver => (key, Some(batch)),
                Task::Publish { channel, home } => {
                    let here = self.broker.publish(&channel, home, batch);
                    // The first subscriber may have come since it was collected.
                    let found = || self.hub.borrow().find(&channel);
                    (key.or_else(|| here.as_ref().and_then(|_| found())), here)
                }
            };
            if let (Some(channel), Some(batch)) = (key, batch) {
                pass.ready.push(Ready { channel, batch });
            }
        }
        let writes = self.fan_out(&pass.ready, &mut pass.gathered);
        pass.ready.clear();
        pass.gathered.clear();
        pass.collected.shrink_to(MAX_KEPT_ENTRIES);
        pass.ready.shrink_to(MAX_KEPT_ENTRIES);
        pass.gathered.shrink_to(MAX_KEPT_ENTRIES);
        self.pass.replace(pass);
        writes
    }

    /// Hands every batch to every subscriber of its channel on this shard. Returns how many system
    /// calls that took.
    fn fan_out(&self, ready: &[Ready], gathered: &mut Vec<Gathered>) -> u64 {
        if ready.is_empty() {
            return 0;
        }
        let (hub, table) = (&*self.hub.borrow(), &*self.table.borrow());
        let tally = Tally::default();
        let (mut looked_at, mut lagging) = (0, 0);
        for (index, Ready { channel, batch }) in ready.iter().enumerate() {
            let several = [Group::SeveralPlain, Group::SeveralDeflated];
            // Those who have nothing to be gathered get it at once.
            let [plain, deflated] = match ready.len() {
                1 => [&[Group::Plain, several[0]][..], &[Group::Deflated, several[1]]],
                _ => [&[Group::Plain][..], &[Group::Deflated]],
            };
            self.deliver_to_groups(plain, *channel, batch, (hub, table), &tally);
            if deflated.iter().any(|group| hub.subscribers(*channel, *group).len() > 0) {
                let batch = self.deflated(batch, WindowBits::MAX);
                self.deliver_to_groups(deflated, *channel, batch, (hub, table), &tally);
            }
            for group in several.iter().filter(|_| ready.len() > 1).chain(&[Group::Own]) {
                let slots = hub.subscribers(*channel, *group);
                let batch = index as u32;
                gathered.extend(slots.map(|slot| Gathered { slot, batch }));
            }
            if tally.writes() - looked_at >= WRITES_PER_LOOK {
                looked_at = tally.writes();
                let written = ready[lagging..=index].iter();
                self.record_lag(written.filter(|ready| !is_gathered(ready, hub)));
                lagging = index + 1;
            }
        }
        self.fan_out_gathered(ready, gathered, table, &tally);
        let (early, late) = ready.split_at(lagging);
        self.record_lag(early.iter().filter(|ready| is_gathered(ready, hub)).chain(late));
        tally.writes()
    }

    /// Hands each of those that hear several channels what was gathered for it.
    fn fan_out_gathered(
        &self,
        ready: &[Ready],
        gathered: &mut [Gathered],
        table: &Table,
        tally: &Tally,
    ) {
        // A stable sort, since it makes use of what is in order already: slots mostly grow along a
        // channel's list.
        gathered.sort_by_key(Gathered::place);
        let mut slices = Vec::new();
        for group in gathered.chunk_by(|one, next| one.slot == next.slot) {
            if let Some(client) = table.client_in(group[0].slot) {
                let batches = group.iter().map(|entry| &*ready[entry.batch as usize].batch);
                self.guard(client, || client.deliver_together(batches, &mut slices, tally, self));
            }
        }
    }

    /// Hands `batch` to everyone in these groups of `channel`.
    #[inline]
    fn deliver_to_groups(
        &self,
        groups: &[Group],
        channel: ChannelKey,
        batch: &Batch,
        (hub, table): (&Hub, &Table),
        tally: &Tally,
    ) {
        let offer = Offer::new(batch);
        for group in groups {
            self.deliver_to_each(hub.subscribers(channel, *group), table, &offer, tally);
        }
        tally.count_for(batch, self);
    }

    /// Hands `offer` to the client in each of `slots`. A panic ends that client's connection, and the
    /// others get theirs.
    #[inline]
    fn deliver_to_each(
        &self,
        mut slots: impl Iterator<Item = u32>,
        table: &Table,
        offer: &Offer<'_>,
        tally: &Tally,
    ) {
        let mut current = None;
        // Caught around the loop, not in it: a closure for each of them would cost more than what
        // the loop does beside the system call.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| {
            for slot in slots.by_ref() {
                let mut written = 0;
                if offer.is_for_all()
                    && let Some(socket) = table.direct(slot)
                {
                    debug_assert!(
                        table.client_in(slot).is_some_and(|one| one.is_writable_at_once())
                    );
                    // A socket that is full or has failed says so once more when it is looked at.
                    written = offer.write(socket).unwrap_or(0);
                    if written == offer.bytes() {
                        tally.count_whole();
                        continue;
                    }
                }
                // A subscriber whose handshake ends in this very moment has nothing before this.
                if let Some(client) = table.client_in(slot) {
                    current = Some(client);
                    client.deliver(offer, written, tally, self);
                }
            }
        })) {
            if let Some(client) = current {
                self.handle_panic(client, &*panic);
            }
        }
    }

    /// Takes note that the last subscriber of each of these on this shard was written to right now.
    fn record_lag<'a>(&self, written: impl Iterator<Item = &'a Ready>) {
        let now = self.now();
        for Ready { batch, .. } in written {
            let lag = now.saturating_duration_since(batch.received_at());
            self.counters.delivery_lag.record(lag);
        }
    }
}

/// Some of its subscribers get it at the end of the pass only.
fn is_gathered(ready: &Ready, hub: &Hub) -> bool {
    let gathered = [Group::SeveralPlain, Group::SeveralDeflated, Group::Own];
    gathered.into_iter().any(|group| hub.subscribers(ready.channel, group).len() > 0)
}
