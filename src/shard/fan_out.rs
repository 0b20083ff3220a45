//! Writing publications to the subscribers: directly, one system call for each, no task woken.

use std::rc::Rc;

use tokio::task::consume_budget;

use crate::broker::Broker;
use crate::pubsub::{Batch, ChannelName};
use crate::shard::Shard;

/// Flushes each turn in which something was published.
pub(crate) async fn flush(shard: Rc<Shard>) {
    loop {
        shard.turn_started.notified().await;
        shard.flush_turn();
        consume_budget().await;
    }
}

impl Shard {
    /// Publishes what this turn has collected and writes what is for subscribers here.
    fn flush_turn(&self) {
        let batches = self.turn.borrow_mut().take();
        for (channel, batch) in batches {
            if let Some(batch) = self.broker.publish(&channel, batch.finish()) {
                self.fan_out(&channel, &batch);
            }
        }
    }

    /// Hands `batch` to every subscriber of `channel` on this shard.
    pub(crate) fn fan_out(&self, channel: &ChannelName, batch: &Batch) {
        let hub = self.hub.borrow();
        let Some(key) = hub.find(channel) else {
            return;
        };
        let table = self.table.borrow();
        for slot in hub.subscribers(key) {
            // A subscriber whose handshake ends in this very moment has nothing before this batch.
            if let Some(client) = table.client_in(slot) {
                self.guard(client, || client.deliver(batch, self));
            }
        }
        self.counters.delivery_lag.record(batch.received_at().elapsed());
    }
}
