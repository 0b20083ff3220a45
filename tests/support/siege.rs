//! A gateway under attack: others are served all the while, and when it is over nothing is left of it.
//!
//! [`Siege::withstand`] has every attack twice. What is allocated once is allocated in the first round,
//! and what the second one leaves behind is a leak.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::until;

/// What an attack may seem to leave behind: what the allocator keeps to use it again.
const SLACK_BYTES: f64 = 4.0 * 1024.0 * 1024.0;

/// Shards of a besieged gateway.
const SHARDS: usize = 2;

/// From one message of a neighbour to its next one, so that they leave the machine to the attack.
const PACE: Duration = Duration::from_millis(3);

/// How many answers each neighbour gets during a flood, within the patience of a test.
const OFTEN: usize = 10;

/// How often the memory is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A gateway with well-behaved clients on each of its shards.
pub(crate) struct Siege {
    pub(crate) gateway: Gateway,
    neighbours: Vec<Arc<Neighbour>>,
    /// Ends with this.
    _served: JoinSet<()>,
}

/// A client that sends a message, waits for the answer, and so on.
#[derive(Default)]
struct Neighbour {
    answers: AtomicUsize,
    longest_wait_micros: AtomicU64,
}

/// What a gateway holds.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    resident_bytes: f64,
    descriptors: f64,
    connections: f64,
}

/// What an attack has cost.
#[derive(Debug)]
pub(crate) struct Toll {
    /// By how much the gateway's own memory has grown at most, of what was seen.
    pub(crate) memory_bytes: usize,
    /// The longest that anyone else waited for an answer. To be told, not to be demanded: machines
    /// that run tests are busy.
    pub(crate) longest_wait: Duration,
}

impl Siege {
    /// Starts a gateway with two shards and these flags besides, and has neighbours connect.
    pub(crate) async fn begin(flags: &[&str]) -> Self {
        let gateway = Gateway::start(&[&["--shards", "2"], flags].concat()).await;
        let (mut neighbours, mut served) = (Vec::new(), JoinSet::new());
        for shard in 0..SHARDS {
            for path in ["/echo".to_owned(), format!("/channels/neighbours-{shard}")] {
                let client = gateway.connect_to_shard(shard, &path).await;
                let neighbour = Arc::new(Neighbour::default());
                neighbours.push(Arc::clone(&neighbour));
                served.spawn(async move { neighbour.be_served(client).await });
            }
        }
        gateway.until_metric("wsgate_connections", &[], neighbours.len() as f64).await;
        Self { gateway, neighbours, _served: served }
    }

    /// Waits until every neighbour has sent another message and got its answer.
    pub(crate) async fn until_others_are_served(&self) {
        self.until_others_are_served_often(1).await;
    }

    /// Waits until every neighbour has sent so many more messages and got their answers.
    async fn until_others_are_served_often(&self, answers: usize) {
        // The first answer from now on may be to a message from before.
        let due: Vec<_> = self.answers().map(|before| before + answers + 1).collect();
        until("the others to be served", async || {
            self.answers().zip(&due).all(|(answers, due)| answers >= *due).then_some(())
        })
        .await;
    }

    fn answers(&self) -> impl Iterator<Item = usize> {
        self.neighbours.iter().map(|neighbour| neighbour.answers.load(Ordering::Relaxed))
    }

    /// Repeats `step` so many times, and until the others were served often meanwhile: not only in the
    /// gaps of a flood, but as if it was not there.
    pub(crate) async fn repeat_while_others_are_served(
        &self,
        times: usize,
        mut step: impl AsyncFnMut(),
    ) {
        let are_served = Cell::new(false);
        let repeat = async {
            let mut done = 0;
            while done < times || !are_served.get() {
                step().await;
                done += 1;
            }
        };
        let watch = async {
            self.until_others_are_served_often(OFTEN).await;
            are_served.set(true);
        };
        tokio::join!(repeat, watch);
    }

    /// Has the gateway attacked, and waits until nothing is left of it: neither a connection, nor a
    /// descriptor, nor a channel, nor memory. `attack` lets go of all its connections.
    pub(crate) async fn withstand(&self, attack: impl AsyncFn(&Self)) -> Toll {
        let calm = self.gateway.memory_bytes();
        let first = self.watch(&attack, calm).await;
        self.until_connections_are_gone().await;
        let before = self.footprint().await;
        for neighbour in &self.neighbours {
            neighbour.longest_wait_micros.store(0, Ordering::Relaxed);
        }
        let second = self.watch(&attack, calm).await;
        let waits = self.neighbours.iter().map(|one| &one.longest_wait_micros);
        let longest = waits.map(|wait| wait.load(Ordering::Relaxed)).max().unwrap_or_default();
        self.until_connections_are_gone().await;
        self.until_back_at(before).await;
        let metrics = self.gateway.metrics().await;
        assert_eq!(metrics.sum("wsgate_panics_total", &[]), 0.0);
        self.until_others_are_served().await;
        let toll =
            Toll { memory_bytes: first.max(second), longest_wait: Duration::from_micros(longest) };
        println!("{:.1} MiB at most, {toll:?}", toll.memory_bytes as f64 / 1_048_576.0);
        toll
    }

    /// Runs `attack` and returns how much memory the gateway had at most meanwhile beyond `calm`.
    async fn watch(&self, attack: impl AsyncFn(&Self), calm: usize) -> usize {
        let most = Cell::new(0);
        let look = async {
            loop {
                most.set(self.gateway.memory_bytes().saturating_sub(calm).max(most.get()));
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        };
        tokio::select! {
            () = attack(self) => most.get(),
            () = look => unreachable!("it looks until the attack is over"),
        }
    }

    /// Waits until the gateway has let go of everybody but the neighbours, and of all that it had for
    /// them.
    pub(crate) async fn until_connections_are_gone(&self) {
        let neighbours = self.neighbours.len() as f64;
        self.gateway.until_metric("wsgate_connections", &[], neighbours).await;
        // Of those who are on channels.
        let subscribed = SHARDS as f64;
        self.gateway.until_metric("wsgate_subscriptions", &[], subscribed).await;
        self.gateway.until_metric("wsgate_channels", &[], subscribed).await;
        self.gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
    }

    async fn footprint(&self) -> Footprint {
        let metrics = self.gateway.metrics().await;
        Footprint {
            resident_bytes: metrics.sum("process_resident_memory_bytes", &[]),
            descriptors: metrics.sum("process_open_fds", &[]),
            connections: metrics.sum("wsgate_connections", &[]),
        }
    }

    async fn until_back_at(&self, before: Footprint) {
        // The connection of a scrape may still be ending while the next one is answered, and the
        // allocator gives back what it has when it comes to it.
        let what = format!("what there was before: {before:?}");
        let is_back = until(&what, async || {
            let now = self.footprint().await;
            let is_back = now.resident_bytes <= before.resident_bytes + SLACK_BYTES
                && now.descriptors <= before.descriptors
                && now.connections == before.connections;
            is_back.then_some(())
        });
        is_back.await;
    }
}

impl Neighbour {
    async fn be_served(&self, mut client: Client) {
        let mut clock = tokio::time::interval(PACE);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 0.. {
            clock.tick().await;
            let text = format!("message {number}");
            let start = Instant::now();
            client.send_text(&text).await;
            assert_eq!(client.read_text().await, text, "a neighbour gets what it is due, in order");
            let waited = start.elapsed().as_micros() as u64;
            self.longest_wait_micros.fetch_max(waited, Ordering::Relaxed);
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}
