//! A gateway under attack: others are served all the while, and when it is over nothing is left of it.
//!
//! [`Siege::withstand`] has every attack [`ROUNDS`] times. What is allocated once is allocated in the
//! first round, and what each of the others leaves behind is a leak. What the allocator happens to keep
//! looks like one, but not for long: then there are more rounds.

use std::cell::Cell;
use std::fmt::{self, Display, Formatter};
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

/// How often a gateway has to withstand an attack at least,
const ROUNDS: usize = 3;

/// and at most, while more seems to be left than may be.
const MOST_ROUNDS: usize = 8;

/// What all rounds together may seem to leave behind: what is allocated once,
const SLACK_BYTES: f64 = 6.0 * MIB;

/// and what every round behind the first may, by which a leak shows that is small: 26 bytes for each of
/// 10,000 clients where they take next to nothing.
const SLACK_BYTES_A_ROUND: f64 = 256.0 * 1024.0;

/// This part of the most that an attack took comes to both, which the allocator keeps to use it again.
const KEPT: f64 = 1.0 / 8.0;

/// Longest that anyone else may wait for an answer. Many times what is usual, which is below a second also
/// on a busy machine: a debug build that inflates bombs with a twelfth of a core took 6.4 s.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How often the neighbours are served while the gateway's memory comes to rest.
const REST: usize = 50;

/// Shards of a besieged gateway.
pub(crate) const SHARDS: usize = 2;

/// From one round of the neighbours' messages to the next, so that they leave the machine to the
/// attack.
const PACE: Duration = Duration::from_millis(3);

/// How often the neighbours are served during a flood, within the patience of a test.
const OFTEN: usize = 10;

/// After this another round tells more than another look at what is left.
const LITTLE_PATIENCE: Duration = Duration::from_secs(3);

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
    /// How often it was had.
    pub(crate) rounds: usize,
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

    /// Has the gateway attacked [`ROUNDS`] times or more, and waits until nothing is left of it: neither a
    /// connection, nor a descriptor, nor a channel, nor memory, nor a bug that the gateway found in
    /// itself. `attack` lets go of all its connections.
    pub(crate) async fn withstand(&self, mut attack: impl AsyncFnMut(&Self)) -> Toll {
        // Asked on one connection, as in the end, so that the others of the admin port can be counted.
        let descriptors = self.gateway.requests().await.scrape().await.sum("process_open_fds", &[]);
        let calm = self.memory_bytes_at_rest().await;

        let (mut memory_bytes, mut at_rest) = (0, Vec::new());
        let left = loop {
            let most = self.watch(&mut attack, calm as usize).await;
            memory_bytes = most.max(memory_bytes);
            self.until_connections_are_gone().await;
            at_rest.push(self.memory_bytes_at_rest().await);
            if at_rest.len() < ROUNDS {
                continue;
            }
            let patience = if at_rest.len() < MOST_ROUNDS { LITTLE_PATIENCE } else { PATIENCE };
            let may_keep = memory_bytes as f64 * KEPT;
            let left = self.left_after(patience, descriptors, calm, &mut at_rest, may_keep).await;
            if left.is_nothing(may_keep) {
                break left;
            }
            assert!(
                at_rest.len() < MOST_ROUNDS,
                "the attack leaves {left} behind: {calm}, then {at_rest:?}"
            );
        };
        assert_eq!(self.gateway.metrics().await.sum("wsgate_panics_total", &[]), 0.0);

        let micros = self.neighbours.seen.longest_wait_micros.load(Ordering::Relaxed);
        let longest_wait = Duration::from_micros(micros);
        let most = memory_bytes as f64 / MIB;
        println!("{most:.1} MiB at most, {left} left, others waited for {longest_wait:?}");
        println!("at rest {calm}, then {at_rest:?}");
        assert!(longest_wait <= LONGEST_WAIT, "others waited for {longest_wait:?}");
        Toll { memory_bytes, rounds: at_rest.len() }
    }

    /// What is left as soon as that is nothing, or else once `patience` is over. Before the attack the
    /// gateway had so many `descriptors` and `calm` bytes; after its rounds it had `at_rest`, of which the
    /// last is looked at again.
    async fn left_after(
        &self,
        patience: Duration,
        descriptors: f64,
        calm: f64,
        at_rest: &mut [f64],
        may_keep: f64,
    ) -> Left {
        let deadline = Instant::now() + patience;
        let mut requests = self.gateway.requests().await;
        loop {
            let least = self.memory_bytes_at_rest().await;
            let last = at_rest.last_mut().expect("there are rounds");
            *last = last.min(least);
            let open = requests.scrape().await.sum("process_open_fds", &[]);
            let left = Left::of(open - descriptors, calm, at_rest);
            if left.is_nothing(may_keep) || Instant::now() > deadline {
                return left;
            }
        }
    }

    /// The least memory that the gateway has while the neighbours are served for a while: the allocator
    /// gives back what is free when it is next called, and a little later.
    async fn memory_bytes_at_rest(&self) -> f64 {
        let mut least = usize::MAX;
        let due = self.neighbours.rounds() + REST;
        until("the others to be served", async || {
            self.neighbours.assert_served();
            least = least.min(self.gateway.memory_bytes());
            (self.neighbours.rounds() >= due).then_some(())
        })
        .await;
        least as f64
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

/// What an attack has left behind.
struct Left {
    descriptors: f64,
    /// Memory, of all rounds together.
    bytes: f64,
    /// Memory of each round since the one after which there was least.
    bytes_a_round: f64,
}

impl Left {
    /// `calm` is what there was before, and `at_rest` what there was after each round, in bytes.
    fn of(descriptors: f64, calm: f64, at_rest: &[f64]) -> Self {
        let (last, earlier) = at_rest.split_last().expect("there are rounds");
        // After one of them the allocator may not have given back everything yet.
        let least = (0..earlier.len()).min_by(|a, b| earlier[*a].total_cmp(&earlier[*b]));
        let least = least.expect("there is more than one round");
        let rounds = earlier.len() - least;
        let bytes_a_round = (last - earlier[least]) / rounds as f64;
        Self { descriptors, bytes: last - calm, bytes_a_round }
    }

    /// No more than what the allocator keeps, of which `may_keep` is for what the attack took.
    fn is_nothing(&self, may_keep: f64) -> bool {
        self.descriptors <= 0.0
            && self.bytes <= SLACK_BYTES + may_keep
            && self.bytes_a_round <= SLACK_BYTES_A_ROUND + may_keep
    }
}

impl Display for Left {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (all, a_round) = (self.bytes / MIB, self.bytes_a_round / 1024.0);
        write!(f, "{} descriptors and {all:.2} MiB, {a_round:.0} KiB a round,", self.descriptors)
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
