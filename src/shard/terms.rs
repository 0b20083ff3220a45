//! What the settings come to on the path of a message, and how a shard takes new settings while it
//! runs.

use std::rc::Rc;
use std::sync::Arc;

use tokio::task::yield_now;

use crate::connection::Timing;
use crate::connection::outbound::Limit;
use crate::shard::settings::Settings;
use crate::shard::{READ_BUFFER_BYTES, Shard};

/// Connections whose deadlines are looked at before the others get their turn.
const REARMED_PER_TURN: usize = 1_024;

/// What every message asks the settings for. Copied out of a `Cell`, which compiles to plain loads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) timing: Timing,
    pub(crate) limit: Limit,
    pub(crate) max_message_bytes: usize,
    pub(crate) max_echo_read_bytes: usize,
    pub(crate) max_echo_backlog_bytes: usize,
}

impl Terms {
    pub(crate) fn new(settings: &Settings) -> Self {
        let queue_bytes = settings.outbound_queue_bytes;
        Self {
            timing: Timing {
                ping_interval: settings.ping_interval,
                idle_timeout: settings.idle_timeout,
                close_timeout: settings.close_timeout,
            },
            limit: Limit { max_bytes: queue_bytes, policy: settings.slow_consumer },
            max_message_bytes: settings.max_message_bytes,
            // Half of the queue may wait when a read adds as much as the other half.
            max_echo_read_bytes: (queue_bytes / 2).clamp(1, READ_BUFFER_BYTES),
            max_echo_backlog_bytes: (queue_bytes / 2).max(1),
        }
    }
}

impl Shard {
    /// The settings that hold now. For what happens once a connection; what happens once a message
    /// reads the [`Terms`].
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    #[inline]
    pub(crate) fn timing(&self) -> Timing {
        self.terms.get().timing
    }

    #[inline]
    pub(crate) fn limit(&self) -> Limit {
        self.terms.get().limit
    }

    #[inline]
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.terms.get().max_message_bytes
    }

    /// Goes by `settings` from now on: open connections with their next message and deadline, new ones
    /// from their handshake on.
    pub(crate) fn reload(self: &Rc<Self>, settings: Arc<Settings>) {
        let before = self.terms.replace(Terms::new(&settings)).timing;
        self.codec.set_min_bytes(settings.compression.min_bytes);
        let is_sooner = settings.idle_timeout < before.idle_timeout
            || settings.ping_interval < before.ping_interval
            || before.ping_interval.is_zero();
        self.settings.replace(settings);
        if is_sooner {
            tokio::task::spawn_local(rearm(Rc::clone(self)));
        }
    }
}

/// Enters deadlines that have come closer. Those that have gone farther are found when the old ones
/// come due.
async fn rearm(shard: Rc<Shard>) {
    for ids in shard.client_ids().chunks(REARMED_PER_TURN) {
        for id in ids {
            let client = shard.table.borrow().client(*id).cloned();
            if let Some(client) = client {
                shard.guard(&client, || shard.arm(&client, &client.hold(&shard)));
            }
        }
        yield_now().await;
    }
}
