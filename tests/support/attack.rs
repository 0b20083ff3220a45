//! An attack on a running gateway: others must not notice it, and it must leave nothing behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::metrics::Metrics;
use crate::support::until;

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// Shards of the gateways that are attacked.
const SHARDS: usize = 2;

/// How long the others leave the gateway alone between two questions, for it has to answer the attack
/// too.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(5);

/// Has `attack` happen to `gateway`, which has two shards: first with the first number of `clients`,
/// after which everything is allocated that is allocated once, then with the second. Returns what it
/// looked like after that.
///
/// Demands that others are served on each shard and from one to the other all the while, that the
/// gateway finds no bug in itself, and that in the end the connections and descriptors are as many as
/// before and its memory has not grown by more than `slack_bytes`.
pub(crate) async fn withstand(
    gateway: &Gateway,
    slack_bytes: f64,
    clients: [usize; 2],
    mut attack: impl AsyncFnMut(usize),
) -> Metrics {
    raise_open_files_limit();
    let others = Others::start(gateway).await;
    let mut requests = gateway.requests().await;
    let mut scrape = async || requests.scrape().await;
    let calm = scrape().await;
    let [first, second] = clients;
    let served = others.served();
    attack(first).await;
    others.check(served).await;
    until_calm(&calm, &mut scrape).await;
    let before = scrape().await;
    let served = others.served();
    attack(second).await;
    others.check(served).await;
    until_calm(&calm, &mut scrape).await;
    let mut grown_mib = f64::NAN;
    let is_back = async || {
        let after = scrape().await;
        let name = "process_resident_memory_bytes";
        let grown_bytes = after.sum(name, &[]) - before.sum(name, &[]);
        grown_mib = grown_bytes / MIB;
        (grown_bytes <= slack_bytes).then_some(after)
    };
    let after = tokio::time::timeout(crate::support::PATIENCE, until("memory", is_back)).await;
    let after = after.unwrap_or_else(|_| panic!("the attack leaves {grown_mib:.1} MiB behind"));
    assert_eq!(after.sum("wsgate_panics_total", &[]), 0.0, "{}", gateway.log());
    println!("{second} clients left {grown_mib:.2} MiB behind");
    others.end();
    after
}

/// Attackers are many, and all of them are this process.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
}

/// Waits until there are no more connections and descriptors than in `calm`.
async fn until_calm(calm: &Metrics, scrape: &mut impl AsyncFnMut() -> Metrics) {
    for name in ["wsgate_connections", "process_open_fds", "wsgate_outbound_queue_bytes"] {
        let most = calm.sum(name, &[]);
        let what = format!("{name} to be back at {most}");
        until(&what, async || (scrape().await.sum(name, &[]) <= most).then_some(())).await;
    }
}

/// Clients who do nothing wrong: on each shard one that talks to the others over a channel, and one
/// to `/echo`. They have a thread of their own, so that nobody has to wait for the attackers but at
/// the gateway.
pub(crate) struct Others {
    talk: JoinHandle<()>,
    answers: Arc<AtomicUsize>,
    /// The longest that everyone together had to wait for their answers.
    slowest_millis: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Others {
    pub(crate) async fn start(gateway: &Gateway) -> Self {
        let others = Self::talk(gateway.listen);
        // Those who were opened on the way to the right shard are gone before anyone counts.
        until("the others to be served", async || (others.served() > 0).then_some(())).await;
        gateway.until_metric("wsgate_connections", &[], 2.0 * SHARDS as f64).await;
        others
    }

    fn talk(address: SocketAddr) -> Self {
        let (answers, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let slowest_millis = Arc::<AtomicU64>::default();
        let (answered, is_enough) = (Arc::clone(&answers), Arc::clone(&is_over));
        let slowest = Arc::clone(&slowest_millis);
        let talk = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("there are descriptors left").block_on(async {
                let mut pairs = Vec::new();
                for shard in 0..SHARDS {
                    let echoed = Client::connect_to_shard(address, shard, "/echo").await;
                    let path = "/channels/others?own=false";
                    pairs.push((echoed, Client::connect_to_shard(address, shard, path).await));
                }
                let mut pause = tokio::time::interval(BETWEEN_QUESTIONS);
                while !is_enough.load(Ordering::Relaxed) {
                    pause.tick().await;
                    let start = Instant::now();
                    converse(&mut pairs).await;
                    slowest.fetch_max(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        Self { talk, answers, slowest_millis, is_over }
    }

    /// How often everyone was answered.
    pub(crate) fn served(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Demands that everyone is answered once more after they were so `served` times: at the end of an
    /// attack that was over sooner than that, or during it.
    pub(crate) async fn check(&self, served: usize) {
        until("others to be served", async || {
            assert!(!self.talk.is_finished(), "others are not served any more");
            (self.served() > served).then_some(())
        })
        .await;
    }

    /// Has them leave.
    pub(crate) fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.talk.join().expect("others are served to the end");
        let slowest = self.slowest_millis.load(Ordering::Relaxed);
        println!("others waited {slowest} ms at most");
    }
}

/// Everyone is heard by whom they talk to.
async fn converse(pairs: &mut [(Client, Client)]) {
    for (echoed, _) in &mut *pairs {
        echoed.send_text("echo").await;
        assert_eq!(echoed.read_text().await, "echo");
    }
    for speaker in 0..pairs.len() {
        pairs[speaker].1.send_text("news").await;
        for listener in (0..pairs.len()).filter(|listener| *listener != speaker) {
            assert_eq!(pairs[listener].1.read_text().await, "news");
        }
    }
}
