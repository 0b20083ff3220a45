//! A gateway under attack: others are served all the while, and when it is over nothing is left of it.
//!
//! [`Siege::withstand`] has every attack twice. What is allocated once is allocated in the first round,
//! and what the second one leaves behind is a leak.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::time::MissedTickBehavior;

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::{PATIENCE, until};

const MIB: f64 = 1024.0 * 1024.0;

/// What an attack may seem to leave behind: the rounding of the allocator and of the kernel,
const SLACK_BYTES: f64 = 2.0 * MIB;

/// and this part of the most that it took, which the allocator keeps to use it again.
const KEPT: f64 = 1.0 / 8.0;

/// Shards of a besieged gateway.
const SHARDS: usize = 2;

/// From one round of the neighbours' messages to the next, so that they leave the machine to the
/// attack.
const PACE: Duration = Duration::from_millis(3);

/// How often the neighbours are served during a flood, within the patience of a test.
const OFTEN: usize = 10;

/// How often the memory is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A gateway with well-behaved clients on each of its shards.
pub(crate) struct Siege {
    /// Before the gateway: they leave before it ends.
    neighbours: Neighbours,
    pub(crate) gateway: Gateway,
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
        Self::of(Gateway::start(&[&["--shards", "2"], flags].concat()).await).await
    }

    /// Has neighbours connect to this gateway, which has two shards.
    pub(crate) async fn of(gateway: Gateway) -> Self {
        raise_open_files_limit();
        let siege = Self { neighbours: Neighbours::of(gateway.listen), gateway };
        siege.until_others_are_served().await;
        // Those who were opened on the way to the right shard are gone before anyone counts.
        siege.until_connections_are_gone().await;
        siege
    }

    /// Has the neighbours leave.
    pub(crate) fn end(self) -> Gateway {
        drop(self.neighbours);
        self.gateway
    }

    /// Waits until every neighbour has sent another message and got its answer.
    pub(crate) async fn until_others_are_served(&self) {
        self.until_others_are_served_often(1).await;
    }

    /// Waits until every neighbour has sent so many more messages and got their answers.
    async fn until_others_are_served_often(&self, rounds: usize) {
        // The first answers from now on may be to messages from before.
        let due = self.neighbours.rounds() + rounds + 1;
        until("the others to be served", async || {
            self.neighbours.assert_served();
            (self.neighbours.rounds() >= due).then_some(())
        })
        .await;
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

    /// Has the gateway attacked twice, and waits until nothing is left of it: neither a connection, nor
    /// a descriptor, nor a channel, nor memory, nor a bug that the gateway found in itself. `attack` lets
    /// go of all its connections.
    pub(crate) async fn withstand(&self, mut attack: impl AsyncFnMut(&Self)) -> Toll {
        // One connection for all that is asked, so that the others of the admin port can be counted.
        let mut requests = self.gateway.requests().await;
        let descriptors = requests.scrape().await.sum("process_open_fds", &[]);
        let calm = self.gateway.memory_bytes();

        let first = self.watch(&mut attack, calm).await;
        self.until_connections_are_gone().await;
        let before = requests.scrape().await.sum("process_resident_memory_bytes", &[]);
        self.neighbours.seen.longest_wait_micros.store(0, Ordering::Relaxed);
        let second = self.watch(&mut attack, calm).await;
        self.until_connections_are_gone().await;

        let memory_bytes = first.max(second);
        let most_left_bytes = SLACK_BYTES + memory_bytes as f64 * KEPT;
        let (mut left_bytes, mut left_descriptors) = (f64::NAN, f64::NAN);
        let is_back = async || {
            let metrics = requests.scrape().await;
            left_bytes = metrics.sum("process_resident_memory_bytes", &[]) - before;
            left_descriptors = metrics.sum("process_open_fds", &[]) - descriptors;
            (left_bytes <= most_left_bytes && left_descriptors <= 0.0).then_some(metrics)
        };
        let metrics = tokio::time::timeout(PATIENCE, until("nothing to be left", is_back)).await;
        let left = format!("{left_descriptors} descriptors and {:.2} MiB", left_bytes / MIB);
        let metrics = metrics.unwrap_or_else(|_| panic!("the attack leaves {left} behind"));
        assert_eq!(metrics.sum("wsgate_panics_total", &[]), 0.0);

        let micros = self.neighbours.seen.longest_wait_micros.load(Ordering::Relaxed);
        let longest_wait = Duration::from_micros(micros);
        let toll = Toll { memory_bytes, longest_wait };
        println!("{:.1} MiB at most, {left} left, {toll:?}", memory_bytes as f64 / MIB);
        toll
    }

    /// Runs `attack`, during which or at the end of which everybody else is served, and returns how much
    /// memory the gateway had at most meanwhile beyond `calm`.
    async fn watch(&self, mut attack: impl AsyncFnMut(&Self), calm: usize) -> usize {
        let most = Cell::new(0);
        let look = async {
            let mut clock = tokio::time::interval(BETWEEN_LOOKS);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                clock.tick().await;
                most.set(self.gateway.memory_bytes().saturating_sub(calm).max(most.get()));
            }
        };
        let attack = async {
            attack(self).await;
            self.until_others_are_served().await;
        };
        tokio::select! {
            () = attack => most.get(),
            () = look => unreachable!("it looks until the attack is over"),
        }
    }

    /// Waits until the gateway has let go of everybody but the neighbours, and of all that it had for
    /// them.
    pub(crate) async fn until_connections_are_gone(&self) {
        let subscribers = SHARDS as f64;
        for (name, of_neighbours) in [
            ("wsgate_connections", 2.0 * subscribers),
            ("wsgate_subscriptions", subscribers),
            ("wsgate_channels", 1.0),
            ("wsgate_outbound_queue_bytes", 0.0),
        ] {
            self.gateway.until_metric(name, &[], of_neighbours).await;
        }
    }
}

/// Attackers are many, and all of them are this process.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
}

/// Clients who do nothing wrong: on each shard one to `/echo`, and one that talks to those on the other
/// shards over a channel. They have a thread of their own, so that nobody has to wait for the attackers
/// but at the gateway.
struct Neighbours {
    /// Taken when they leave.
    talk: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
    seen: Arc<Seen>,
}

/// How the neighbours are served.
#[derive(Default)]
struct Seen {
    /// How often everyone was.
    rounds: AtomicUsize,
    longest_wait_micros: AtomicU64,
}

impl Neighbours {
    fn of(gateway: SocketAddr) -> Self {
        let (is_over, seen) = (Arc::<AtomicBool>::default(), Arc::<Seen>::default());
        let (is_enough, sees) = (Arc::clone(&is_over), Arc::clone(&seen));
        let talk = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("there are descriptors left");
            runtime.block_on(talk(gateway, &is_enough, &sees));
        });
        Self { talk: Some(talk), is_over, seen }
    }

    fn rounds(&self) -> usize {
        self.seen.rounds.load(Ordering::Relaxed)
    }

    fn assert_served(&self) {
        let is_finished = self.talk.as_ref().is_none_or(JoinHandle::is_finished);
        assert!(!is_finished, "others are not served any more");
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let end = self.talk.take().map(JoinHandle::join);
        let are_served = matches!(end, Some(Ok(())));
        assert!(are_served || thread::panicking(), "others are served to the end");
    }
}

/// Has everyone send a message and wait for its answers, again and again.
async fn talk(gateway: SocketAddr, is_over: &AtomicBool, seen: &Seen) {
    // With the number of those from whom each hears.
    let mut clients = Vec::new();
    for shard in 0..SHARDS {
        for (path, heard) in [("/echo", 1), ("/channels/neighbours?own=false", SHARDS - 1)] {
            clients.push((Client::connect_to_shard(gateway, shard, path).await, heard));
        }
    }
    let mut clock = tokio::time::interval(PACE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        clock.tick().await;
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("message {number}");
        let start = Instant::now();
        for (client, _) in &mut clients {
            client.send_text(&text).await;
        }
        for (client, heard) in &mut clients {
            for _ in 0..*heard {
                assert_eq!(client.read_text().await, text, "everyone gets what is due, in order");
            }
        }
        let waited = start.elapsed().as_micros() as u64;
        seen.longest_wait_micros.fetch_max(waited, Ordering::Relaxed);
        seen.rounds.fetch_add(1, Ordering::Relaxed);
    }
}
