//! Many connections and one hub, driven through random schedules of arrivals, stalls, closes and
//! deadlines on a simulated clock, with a look at every promise after each step. No socket, no
//! thread, no sleep: a run follows from its seed.
//!
//! - `world`: one run; what happens next.
//! - `shard`: the driver, as the state machines of the gateway see it. `socket`: what it reads from
//!   and writes to.
//! - `peer`: the other end, well-behaved or not. `frames`: how it understands what it gets.
//! - `line`: one connection alone, on which a test says itself what happens.
//! - `promises`: what each connection was promised, and what it got.
//!
//! When a promise is broken the output names the seed. `WSGATE_SIMULATION_SEED=…` runs that one alone,
//! `WSGATE_SIMULATION_SECONDS=…` (3 by default) says how long to look at new ones.

#[path = "simulation/frames.rs"]
mod frames;
#[path = "simulation/line.rs"]
mod line;
#[path = "simulation/peer.rs"]
mod peer;
#[path = "simulation/promises.rs"]
mod promises;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/shard.rs"]
mod shard;
#[path = "simulation/socket.rs"]
mod socket;
#[path = "simulation/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::{Duration, Instant};

use wsgate::connection::outbound::SlowConsumerPolicy;

use crate::line::Line;

/// Seeds that every run of the tests looks at.
const KEPT_SEEDS: Range<u64> = 0..80;

/// What has to happen somewhere in the kept seeds, since a promise about something that never happens
/// is kept by anything.
const EVENTS: [&str; 16] = [
    "Closes of peers",
    "Closes that pass ours on the way",
    "Pings due",
    "Pongs before what waits",
    "batches less the subscriber's own",
    "batches of several channels in one write",
    "closing cut off",
    "connections that failed",
    "echo not read while its answers wait",
    "idle peers closed",
    "messages in pieces",
    "pushes that dropped",
    "slow consumers closed",
    "sockets that ended",
    "subscribers that came within a turn",
    "violations",
];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?} and not a number")))
}

#[test]
fn promises_hold_in_every_schedule_of_the_kept_seeds() {
    if let Some(seed) = number("WSGATE_SIMULATION_SEED") {
        world::run(seed);
        return;
    }
    let mut events: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in KEPT_SEEDS {
        for (event, count) in world::run(seed) {
            *events.entry(event).or_default() += count;
        }
    }
    println!("{events:#?}");
    for event in EVENTS {
        assert!(events.contains_key(event), "no schedule had {event}");
    }
}

#[test]
fn promises_hold_in_schedules_that_nobody_has_seen() {
    if number("WSGATE_SIMULATION_SEED").is_some() {
        return;
    }
    let duration = Duration::from_secs(number("WSGATE_SIMULATION_SECONDS").unwrap_or(3));
    // The one thing here that differs from run to run.
    let first = RandomState::new().hash_one("a seed");
    let start = Instant::now();
    let mut seeds = 0;
    while start.elapsed() < duration {
        world::run(first.wrapping_add(seeds));
        seeds += 1;
    }
    println!("{seeds} seeds from {first} on");
}

#[test]
fn same_seed_gives_the_same_run() {
    assert_eq!(world::run(1), world::run(1));
}

// What schedules have found, each as the shortest one that shows it.

#[test]
fn pong_never_comes_behind_that_of_a_later_ping() {
    let mut line = Line::new(SlowConsumerPolicy::Close);
    line.fill();
    line.ping();
    line.ping();
    line.drain();
}

#[test]
fn pong_is_not_dropped_for_messages_that_come_after_it() {
    let mut line = Line::new(SlowConsumerPolicy::DropOldest);
    line.fill();
    line.ping();
    for _ in 0..10 {
        line.send(100);
    }
    line.drain();
}
