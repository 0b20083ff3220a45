//! What a run found out, as plain values. All printed forms are made from these.

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything that one page or one JSON document says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Document<'a> {
    /// One for each scenario that was run.
    pub reports: &'a [Report],
    /// One for each scenario that several servers went through.
    pub comparisons: &'a [Comparison],
    /// What it was measured on, where that is known and to be told.
    pub machine: Option<&'a Machine>,
}

/// What a run was measured on. It names nobody: no host name, no address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's model, as it calls itself.
    pub cpu: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// `Linux 6.1.0`.
    pub kernel: String,
}

/// The result of one scenario against one server.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the person called it; the kind where nothing was said.
    pub name: String,
    /// `echo`, `fanout`, `idle`, `storm`, `slow`, `churn` or `soak`.
    pub kind: &'static str,
    /// The server's URL.
    pub target: String,
    /// What was asked for, in the order of the command line.
    pub parameters: Vec<Parameter>,
    /// When measuring began, in UTC (RFC 3339).
    pub started_at: String,
    /// How long was measured, in seconds.
    pub seconds: f64,
    /// Sockets.
    pub connections: Connections,
    /// Messages of the measured time.
    pub messages: Messages,
    /// From the moment a message was to be sent until it was received; for a fan-out, of every
    /// delivery.
    pub latency: Option<Latency>,
    /// From the moment a connection was to be opened until its handshake was answered.
    pub connect_latency: Option<Latency>,
    /// How often something went wrong, by kind. Empty is good.
    pub errors: BTreeMap<String, u64>,
    /// What the server process used, where its id is known.
    pub server: Option<ServerUsage>,
    /// What is special about this kind of scenario, as label and value for a person.
    pub findings: Vec<Finding>,
    /// What happened over time.
    pub timeline: Vec<Moment>,
    /// The conditions that were set, and whether they are met.
    pub checks: Vec<Check>,
}

impl Report {
    /// The conditions that are not met.
    pub fn failed_checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }

    /// How often anything went wrong.
    #[must_use]
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// One setting of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Parameter {
    /// As on the command line, without dashes: `in-flight`.
    pub name: String,
    /// As a person would write it: `64KiB`, `10s`.
    pub value: String,
}

/// One line about the outcome that only this kind of scenario has.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// `memory of a connection`.
    pub label: String,
    /// `696 bytes`.
    pub text: String,
    /// The bare number, in `unit`.
    pub value: f64,
    /// `bytes`, `µs`, `messages`, or nothing.
    pub unit: &'static str,
}

/// Sockets of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Connections {
    /// How many were asked for.
    pub wanted: u64,
    /// How many handshakes were answered with 101.
    pub opened: u64,
    /// How many were still open when measuring ended.
    pub open_at_end: u64,
}

/// Messages of the measured time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Messages {
    /// How many were sent.
    pub sent: u64,
    /// How many were received: echoes, or deliveries.
    pub received: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Received in a second, in the mean.
    pub received_per_second: f64,
}

/// A distribution of durations. All in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1,000 are below.
    pub p99_9: f64,
    /// 9,999 of 10,000 are below.
    pub p99_99: f64,
    /// The largest.
    pub max: f64,
    /// The curve, as percentile (0 to 100) and microseconds, ascending; dense towards 100.
    pub curve: Vec<(f64, f64)>,
}

/// What the server's processes used while measuring.
#[derive(Clone, Debug, Serialize)]
pub struct ServerUsage {
    /// The process whose id was given; its children count too.
    pub pid: u32,
    /// User and system time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// CPU time in microseconds for each message received; `None` where none was.
    pub cpu_per_message: Option<f64>,
    /// CPU time over wall time; 1.0 is one core.
    pub cores: f64,
    /// Anonymous resident memory (not what is mapped from files) before the first connection, in bytes.
    pub memory_before: u64,
    /// The same at the end of measuring.
    pub memory_at_end: u64,
    /// The largest that was seen.
    pub memory_max: u64,
}

/// One point of the timeline: the time since the one before it.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Seconds since measuring began; negative while connecting and warming up.
    pub at: f64,
    /// Open connections.
    pub open: u64,
    /// Messages received in a second.
    pub received_per_second: f64,
    /// Median latency in microseconds.
    pub p50: Option<f64>,
    /// 99th percentile in microseconds.
    pub p99: Option<f64>,
    /// Cores that the server used.
    pub cores: Option<f64>,
    /// Anonymous resident memory of the server, in bytes.
    pub memory: Option<u64>,
}

/// A condition of the command line.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// `max-p99`, `min-rate` or `max-errors`; for a soak the invariant.
    pub name: &'static str,
    /// What was asked for, for a person.
    pub wanted: String,
    /// What was found, for a person.
    pub found: String,
    /// Whether it is met.
    pub passed: bool,
}

/// The same scenario against several servers, in turns.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// `echo 64 B, 16 in flight`.
    pub title: String,
    /// `echo`, `fanout`, …
    pub kind: &'static str,
    /// The command that gives this comparison again.
    pub command: String,
    /// When the first round began, in UTC (RFC 3339).
    pub started_at: String,
    /// What is compared. Smaller is better in each of them.
    pub measures: Vec<Measure>,
}

/// One quantity, of every contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// `server CPU a delivery`, `memory of a connection`.
    pub label: String,
    /// `µs`, `bytes`.
    pub unit: &'static str,
    /// In the order in which they were given. The first is the one that the others are compared with.
    pub contestants: Vec<Contestant>,
}

impl Measure {
    /// The contestant that the others' ratios are taken of: the floor where it takes part, else
    /// the first. `None` where nobody takes part.
    #[must_use]
    pub fn reference(&self) -> Option<&Contestant> {
        self.contestants
            .iter()
            .find(|contestant| contestant.name == "floor")
            .or(self.contestants.first())
    }
}

/// One server of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Contestant {
    /// `wsgate`, `floor`, `uWebSockets`.
    pub name: String,
    /// The value of each round.
    pub rounds: Vec<f64>,
    /// Median of the rounds.
    pub median: f64,
    /// This server's value over the one of the reference (the floor where it takes part, else the
    /// first), in the same round: median, smallest and largest.
    pub ratio: Option<Ratio>,
    /// Why it has no value, where it has none.
    pub failure: Option<String>,
}

impl Contestant {
    /// The median of the rounds.
    ///
    /// # Errors
    ///
    /// Why there is none, for a person.
    pub fn value(&self) -> Result<f64, &str> {
        match &self.failure {
            Some(reason) if reason.trim().is_empty() => {
                Err("failed, for a reason that is not known")
            }
            Some(reason) => Err(reason),
            None if self.rounds.is_empty() => Err("no round was measured"),
            None if !self.median.is_finite() => Err("its value is no number"),
            None => Ok(self.median),
        }
    }

    /// The smallest and the largest value of the rounds, `None` where there is no number.
    #[must_use]
    pub fn spread(&self) -> Option<(f64, f64)> {
        let numbers = || self.rounds.iter().copied().filter(|value| value.is_finite());
        Some((numbers().reduce(f64::min)?, numbers().reduce(f64::max)?))
    }
}

/// A ratio with its spread over the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}
