//! The course that all scenarios share: connect, warm up, measure, settle, report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::client::deflate::Compression;
use crate::client::payload::Payload;
use crate::engine::fleet::{Collected, Counted, Fleet};
use crate::engine::plan::{Load, Phase, Plan, Role};
use crate::engine::sample::Counts;
use crate::report::format;
use crate::report::model::{Connections, Finding, Latency, Messages, Report, ServerUsage};
use crate::report::progress::Progress;
use crate::scenario::Measured;
use crate::scenario::arguments::{Course, Place};
use crate::server_process::Usage;

/// A run that could not be made.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// A run would take more descriptors than this process may have.
    #[error(
        "{connections} connections need as many descriptors, but this process may have {limit}; raise the hard limit (ulimit -Hn) or ask for fewer"
    )]
    Descriptors {
        /// How many were asked for.
        connections: usize,
        /// The hard limit.
        limit: u64,
    },
    /// Nobody could connect.
    #[error("none of {wanted} connections to {url} could be opened: {errors}")]
    NoConnection {
        /// How many were tried.
        wanted: usize,
        /// The server.
        url: String,
        /// What went wrong, by kind.
        errors: String,
    },
    /// The settings do not go together.
    #[error("{0}")]
    Settings(String),
    /// The machine refuses something, or the server's process is gone.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Descriptors that are not connections.
const RESERVED_DESCRIPTORS: u64 = 64;

/// What the server allocates for the first connections and then keeps is not counted as theirs.
pub(crate) const FIRST_CONNECTIONS: usize = 200;

/// A run under way.
pub(crate) struct Run {
    pub(crate) fleet: Fleet,
    url: String,
    started_at: SystemTime,
    before: Usage,
    measuring: Option<(Instant, Usage)>,
    measured: Option<(Duration, Usage, u64)>,
}

impl Run {
    /// A plan of what every scenario has; nobody sends anything.
    pub(crate) fn plan(place: &Place, course: &Course, roles: Vec<Role>) -> Plan {
        Plan {
            target: place.target.clone(),
            api: place.api.clone(),
            headers: place.headers.clone(),
            roles,
            load: Load::None,
            payload: Payload::Filler,
            payload_bytes: 0,
            is_text: false,
            compression: Compression::Off,
            threads: course.threads.get(),
            connect_rate: course.connect_rate,
            max_dialing: course.max_dialing.get().div_ceil(course.threads.get()),
            connect_timeout: course.connect_timeout,
            is_busy: course.busy,
            retries: false,
        }
    }

    /// Starts the threads of clients for `plan`.
    pub(crate) fn start(
        plan: Plan,
        place: &Place,
        name: &str,
        quiet: bool,
    ) -> Result<Self, RunError> {
        raise_descriptor_limit(plan.roles.len())?;
        let url = place.target.url();
        let fleet = Fleet::start(plan, place.server, Progress::new(name, quiet))?;
        let before = usage(&fleet);
        let started_at = SystemTime::now();
        Ok(Self { fleet, url, started_at, before, measuring: None, measured: None })
    }

    /// Connects everybody, those who publish last.
    pub(crate) fn connect(&mut self) -> Result<(), RunError> {
        let roles = &self.fleet.plan.roles;
        let wanted = roles.len();
        let readers = roles.iter().take_while(|role| role.publisher().is_none()).count();
        for limit in [readers, wanted] {
            self.fleet.connect(limit)?;
        }
        self.check_connected(wanted)
    }

    pub(crate) fn check_connected(&mut self, wanted: usize) -> Result<(), RunError> {
        if self.fleet.open() > 0 {
            return Ok(());
        }
        let errors = told(self.fleet.errors_so_far()?);
        Err(RunError::NoConnection { wanted, url: self.url.clone(), errors })
    }

    /// From here on the server's memory counts.
    pub(crate) fn count_memory_from_here(&mut self) {
        self.before = usage(&self.fleet);
    }

    pub(crate) fn usage(&self) -> Usage {
        usage(&self.fleet)
    }

    /// Stays in `phase`, which is one that is measured.
    pub(crate) fn measure(&mut self, phase: Phase, duration: Duration) -> Result<(), RunError> {
        self.begin_measuring(phase, Some(duration));
        self.fleet.stay(phase, duration)?;
        self.end_measuring();
        Ok(())
    }

    pub(crate) fn begin_measuring(&mut self, phase: Phase, lasts: Option<Duration>) {
        self.started_at = SystemTime::now();
        self.measuring = Some((Instant::now(), usage(&self.fleet)));
        self.fleet.enter(phase, lasts);
    }

    pub(crate) fn end_measuring(&mut self) {
        let began = self.measuring.map(|(began, _)| began.elapsed()).unwrap_or_default();
        self.measured = Some((began, usage(&self.fleet), self.fleet.open()));
    }

    /// Lets what is on its way arrive, ends the clients, and makes the report.
    pub(crate) fn report<S: Measured>(
        mut self,
        scenario: &S,
    ) -> Result<(Report, Collected), RunError> {
        self.fleet.settle()?;
        let plan = std::sync::Arc::clone(&self.fleet.plan);
        let server = self.fleet.server;
        let collected = self.fleet.finish()?;
        let (began, start) =
            self.measuring.map_or((None, Usage::default()), |(at, usage)| (Some(at), usage));
        let (duration, end, open_at_end) =
            self.measured.unwrap_or((Duration::ZERO, Usage::default(), 0));
        debug_assert!(began.is_some(), "every scenario measures");
        let seconds = duration.as_secs_f64();
        let Counted { counts, .. } = collected.measured;
        let server = server.map(|server| {
            let cpu_seconds = end.cpu.saturating_sub(start.cpu).as_secs_f64();
            let cpu_per_message =
                (counts.received > 0).then(|| cpu_seconds * 1e6 / counts.received as f64);
            ServerUsage {
                pid: server.pid(),
                cpu_seconds,
                cpu_per_message,
                cores: cpu_seconds / seconds,
                memory_before: self.before.memory,
                memory_at_end: end.memory,
                memory_max: collected.memory_max.max(end.memory),
            }
        });
        let mut connecting = collected.connecting.connect_latency.clone();
        connecting.add(&collected.measured.connect_latency).expect("they have the same bounds");
        let opened = collected.connecting.counts.opened + counts.opened;
        let course = scenario.course();
        let mut parameters = scenario.parameters();
        parameters.extend(course.parameters());
        let report = Report {
            name: course.name.clone().unwrap_or_else(|| S::KIND.to_owned()),
            kind: S::KIND,
            target: self.url,
            parameters,
            started_at: humantime::format_rfc3339_seconds(self.started_at).to_string(),
            seconds,
            connections: Connections { wanted: plan.roles.len() as u64, opened, open_at_end },
            messages: Messages {
                sent: counts.sent,
                received: counts.received,
                received_bytes: counts.received_bytes,
                received_per_second: counts.received as f64 / seconds,
            },
            latency: latency(&collected.measured.latency),
            connect_latency: latency(&connecting),
            errors: collected.errors.clone(),
            server,
            findings: wire_findings(&plan, counts),
            timeline: collected.timeline.clone(),
            checks: Vec::new(),
        };
        Ok((report, collected))
    }
}

/// What compression has saved. Told of uncompressed JSON too, for the comparison.
fn wire_findings(plan: &Plan, counts: Counts) -> Vec<Finding> {
    let is_told = plan.compression != Compression::Off || plan.payload != Payload::Filler;
    if !is_told || counts.received == 0 || counts.received_bytes == 0 {
        return Vec::new();
    }
    let each = counts.wire_bytes as f64 / counts.received as f64;
    let saved = 100.0 * (1.0 - counts.wire_bytes as f64 / counts.received_bytes as f64);
    vec![
        finding("bytes on the wire a message", each, "bytes", format::bytes(each)),
        finding("saved of the payload's bytes", saved, "%", format!("{saved:.1} %")),
    ]
}

fn usage(fleet: &Fleet) -> Usage {
    fleet.server.map(|server| server.usage()).unwrap_or_default()
}

pub(crate) fn raise_descriptor_limit(connections: usize) -> Result<(), RunError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit { current: maximum, maximum };
        setrlimit(Resource::Nofile, raised).map_err(std::io::Error::from)?;
    }
    match maximum {
        Some(limit) if (connections as u64).saturating_add(RESERVED_DESCRIPTORS) > limit => {
            Err(RunError::Descriptors { connections, limit })
        }
        Some(_) | None => Ok(()),
    }
}

/// A distribution of nanoseconds, as the report has it.
pub(crate) fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    if histogram.is_empty() {
        return None;
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let curve = histogram.iter_quantiles(5);
    let curve = curve.map(|point| {
        (point.quantile_iterated_to() * 100.0, point.value_iterated_to() as f64 / 1e3)
    });
    Some(Latency {
        count: histogram.len(),
        min: histogram.min() as f64 / 1e3,
        mean: histogram.mean() / 1e3,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p99_9: at(0.999),
        p99_99: at(0.9999),
        max: histogram.max() as f64 / 1e3,
        curve: curve.collect(),
    })
}

/// Errors by kind, for a person.
pub(crate) fn told(errors: &BTreeMap<String, u64>) -> String {
    let errors: Vec<String> =
        errors.iter().map(|(kind, count)| format!("{kind} ({count} times)")).collect();
    if errors.is_empty() { "no answer".to_owned() } else { errors.join(", ") }
}

pub(crate) fn finding(label: &str, value: f64, unit: &'static str, text: String) -> Finding {
    Finding { label: label.to_owned(), text, value, unit }
}
