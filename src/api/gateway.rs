//! What the answers are made from: the ways to the shards, their counters, and where a drain stands.
//! Lives on the control thread.

use std::cell::{Cell, Ref, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use crate::broker::memory::Publisher;
use crate::pubsub::GatewayId;
use crate::shard::Loads;
use crate::shard::orders::Handle;
use crate::telemetry::counters::{Counters, RELOAD_FAILED, RELOAD_SUCCEEDED};
use crate::telemetry::export::Exporter;

/// Who may use the API. Never shown: it has the key.
pub enum ApiAccess {
    /// Whoever knows this key.
    Key(String),
    /// Every process on this machine: the admin address is a loopback address.
    Loopback,
    /// Nobody: there is no key, and the admin address can be reached from elsewhere.
    Off,
}

/// A drain that the API asks for. What it does not say is as the settings have it.
#[derive(Clone, Copy, Debug)]
pub struct DrainRequest {
    /// How long to accept on.
    pub grace: Option<Duration>,
    /// Over how long the closes are spread.
    pub duration: Option<Duration>,
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
    access: RefCell<ApiAccess>,
    max_message_bytes: Cell<usize>,
    pub(crate) publisher: Publisher,
    shards: Arc<[Handle]>,
    loads: Arc<Loads>,
    /// The control thread's own.
    pub(crate) counters: Arc<Counters>,
    pub(crate) shard_counters: Vec<Arc<Counters>>,
    exporter: RefCell<Exporter>,
    phase: Cell<Phase>,
    /// The one drain that the API asks for.
    drain: Cell<Option<oneshot::Sender<DrainRequest>>>,
    /// Connections are being shed until then.
    pub(crate) shedding_until: Cell<Option<Instant>>,
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
            access: RefCell::new(access),
            max_message_bytes: Cell::new(max_message_bytes),
            publisher,
            shards,
            loads,
            counters,
            shard_counters,
            exporter: RefCell::new(exporter),
            phase: Cell::new(Phase::Serving),
            drain: Cell::new(None),
            shedding_until: Cell::new(None),
            started_at,
        }
    }

    /// Lets others use the API from now on.
    pub fn set_access(&self, access: ApiAccess) {
        self.access.replace(access);
    }

    /// Bounds messages anew.
    pub fn set_max_message_bytes(&self, max_message_bytes: usize) {
        self.max_message_bytes.set(max_message_bytes);
    }

    /// Who may use the API now.
    pub(crate) fn access(&self) -> Ref<'_, ApiAccess> {
        self.access.borrow()
    }

    /// The bound on a message now.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.max_message_bytes.get()
    }

    /// Resolves when the API asks for a drain. To be called once.
    pub fn drain_requests(&self) -> oneshot::Receiver<DrainRequest> {
        let (sender, requests) = oneshot::channel();
        self.drain.set(Some(sender));
        requests
    }

    /// Asks for a drain. Returns whether there is none yet.
    pub(crate) fn request_drain(&self, request: DrainRequest) -> bool {
        self.phase.get() == Phase::Serving
            && self.drain.take().is_some_and(|drain| drain.send(request).is_ok())
    }

    /// Where the process stands.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Takes note of what came of reading the configuration at `at`.
    pub fn note_reload(&self, succeeded: bool, at: SystemTime) {
        let index = if succeeded { RELOAD_SUCCEEDED } else { RELOAD_FAILED };
        self.counters.config_reloads[index].increment();
        self.exporter.borrow().set_config_loaded(succeeded, at);
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
        self.tell_loads();
        self.exporter.borrow_mut().hand_over(now);
    }

    /// What a scrape gets.
    pub(crate) fn render_metrics(&self, now: Instant) -> String {
        self.tell_loads();
        self.exporter.borrow_mut().render(now)
    }

    /// Hands over what no counter tells.
    fn tell_loads(&self) {
        let exporter = self.exporter.borrow();
        exporter.set_addresses(self.loads.addresses());
        exporter.set_max_connections(self.loads.max_connections());
    }
}
