//! What the answers are made from: the ways to the shards, their counters, and where a drain stands.
//! Lives on the control thread.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use crate::broker::memory::Publisher;
use crate::pubsub::GatewayId;
use crate::shard::Loads;
use crate::shard::orders::Handle;
use crate::telemetry::counters::Counters;
use crate::telemetry::export::Exporter;

/// Who may use the API.
#[derive(Debug)]
pub enum ApiAccess {
    /// Whoever knows this key.
    Key(String),
    /// Every process on this machine: the admin address is a loopback address.
    Loopback,
    /// Nobody: there is no key, and the admin address can be reached from elsewhere.
    Off,
}

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Draining, and still accepting so that load balancers can look elsewhere.
    Grace,
    /// Draining, and closing what is open.
    Closing,
}

/// The gateway, seen from the control thread.
pub struct Gateway {
    /// This process.
    pub id: GatewayId,
    pub(crate) access: ApiAccess,
    pub(crate) max_message_bytes: usize,
    pub(crate) publisher: Publisher,
    shards: Arc<[Handle]>,
    loads: Arc<Loads>,
    /// The control thread's own.
    pub(crate) counters: Arc<Counters>,
    pub(crate) shard_counters: Vec<Arc<Counters>>,
    exporter: RefCell<Exporter>,
    phase: Cell<Phase>,
    pub(crate) started_at: Instant,
}

impl Gateway {
    /// Puts the parts together.
    #[expect(clippy::too_many_arguments, reason = "each is a part that the server has made")]
    pub fn new(
        id: GatewayId,
        access: ApiAccess,
        max_message_bytes: usize,
        publisher: Publisher,
        shards: Arc<[Handle]>,
        loads: Arc<Loads>,
        counters: Arc<Counters>,
        shard_counters: Vec<Arc<Counters>>,
        exporter: Exporter,
        started_at: Instant,
    ) -> Self {
        Self {
            id,
            access,
            max_message_bytes,
            publisher,
            shards,
            loads,
            counters,
            shard_counters,
            exporter: RefCell::new(exporter),
            phase: Cell::new(Phase::Serving),
            started_at,
        }
    }

    /// All shards, in their order.
    pub fn shards(&self) -> &[Handle] {
        &self.shards
    }

    /// How many connections there are.
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// Takes note of a step of the drain.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.exporter.borrow().set_draining(phase != Phase::Serving);
    }

    /// Why no load balancer should send new connections here. `None`: it should.
    pub fn not_ready(&self) -> Option<String> {
        match self.phase.get() {
            Phase::Grace => Some("draining: still accepting, but going away".to_owned()),
            Phase::Closing => Some("draining: closing connections".to_owned()),
            Phase::Serving if self.loads.is_full() => Some(format!(
                "full: {} connections of at most {}",
                self.loads.total(),
                self.loads.max_connections()
            )),
            Phase::Serving => None,
        }
    }

    /// Hands the sums of all counters to the metrics recorder.
    pub fn hand_over_metrics(&self, now: Instant) {
        self.exporter.borrow_mut().hand_over(now);
    }

    /// What a scrape gets.
    pub(crate) fn render_metrics(&self, now: Instant) -> String {
        self.exporter.borrow_mut().render(now)
    }
}
