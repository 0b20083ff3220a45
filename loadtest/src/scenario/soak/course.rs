//! A soak from the first connection to the report: who there is, the laps, the quiet points.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;

use crate::client::deflate::Compression;
use crate::client::payload::Random;
use crate::engine::sample::histogram;
use crate::report::format;
use crate::report::model::{Connections, Messages, Moment, Report, ServerUsage};
use crate::report::progress::{self, Progress, Status};
use crate::scenario::arguments::Place;
use crate::scenario::run::{RunError, finding, latency};
use crate::scenario::soak::load::Steady;
use crate::scenario::soak::socket::PATIENCE;
use crate::scenario::soak::stage::{LOOK, Phase, Stage};
use crate::scenario::soak::verdicts::Invariant;
use crate::scenario::soak::watch::{Memory, Watch};
use crate::scenario::soak::{Soak, churn, faults, load};
use crate::scenario::{Scenario, parameter};
use crate::server_process::{ServerProcess, Usage};

/// A soak under way.
pub(super) struct Course<'a> {
    soak: &'a Soak,
    watch: Watch,
    progress: Progress,
    /// How many stay.
    steady: usize,
    began: Instant,
    before: Usage,
    /// At the first quiet point, before anything was done.
    descriptors: Option<u64>,
    quiet_points: u64,
    memory: Memory,
    memory_max: u64,
    latency: Histogram<u64>,
    timeline: Vec<Moment>,
    moment: Moments,
}

/// What was counted when the latest point of the timeline was made.
struct Moments {
    at: Instant,
    received: u64,
    usage: Option<Usage>,
}

/// A lap is a sixth of a short soak, and never longer than this: memory needs some points.
const MAX_LAP: Duration = Duration::from_secs(30);
const MIN_LAP: Duration = Duration::from_secs(1);

/// How often a publisher by the API publishes.
const API_INTERVAL: Duration = Duration::from_millis(300);

/// How often the progress line is written anew, and a point of the timeline is made.
const MOMENT: Duration = Duration::from_millis(500);

/// How many points the timeline has at most, about.
const MAX_MOMENTS: f64 = 2_000.0;

/// What has not arrived when nothing has for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// How long memory is left alone before it is looked at: an allocator gives pages back with a delay.
const MEMORY_SETTLES: Duration = Duration::from_millis(300);

impl<'a> Course<'a> {
    pub(super) fn new(soak: &'a Soak, stage: &Stage) -> Self {
        let Place { server, api, .. } = &stage.place;
        let watch = Watch { server: *server, api: api.clone() };
        let usage = server.map(ServerProcess::usage);
        let now = Instant::now();
        Self {
            soak,
            watch,
            progress: Progress::new(soak.name.as_deref().unwrap_or(Soak::KIND), soak.quiet),
            steady: 0,
            began: now,
            before: usage.unwrap_or_default(),
            descriptors: None,
            quiet_points: 0,
            memory: Memory::default(),
            memory_max: 0,
            latency: histogram(),
            timeline: Vec::new(),
            moment: Moments { at: now, received: 0, usage },
        }
    }

    /// Lets it go on until its time is over.
    pub(super) fn run(mut self, stage: &Stage) -> Result<Report, RunError> {
        let started_at = SystemTime::now();
        let Cast { readers, publishers, echoes } = self.connect(stage)?;
        self.began = Instant::now();
        self.descriptors = self.watch.descriptors();
        let start = self.watch.server.map(|server| server.usage()).unwrap_or_default();
        let soak = self.soak;
        let mut open_at_end = 0;
        std::thread::scope(|scope| {
            // Whatever happens here, the clients end.
            let _end = EndAtLast(stage);
            scope.spawn(|| load::read(stage, readers));
            let interval = Duration::from_secs(1) * publishers.len() as u32 / soak.rate;
            for (publisher, steady) in (stage.api_publishers..).zip(publishers) {
                scope.spawn(move || load::publish(stage, steady, publisher, interval));
            }
            if let Some(api) = &stage.place.api {
                for channel in 0..stage.api_publishers {
                    scope.spawn(move || {
                        load::publish_by_api(stage, api, channel, channel.into(), API_INTERVAL);
                    });
                }
            }
            let mut random = Random::new(soak.seed);
            for steady in echoes {
                let seed = random.next();
                scope.spawn(move || load::echo(stage, steady, seed));
            }
            for _ in 0..soak.visitors {
                let seed = random.next();
                scope.spawn(move || churn::visit(stage, seed));
            }
            let faults = soak.faults();
            for number in (0..soak.intruders).filter(|_| !faults.is_empty()) {
                let (seed, faults) = (random.next(), faults.clone());
                scope.spawn(move || faults::intrude(stage, &faults, number.into(), seed));
            }
            self.laps(stage);
            open_at_end = stage.open.load(Ordering::Relaxed);
        });
        let (end, seconds) = (self.watch.server.map(|server| server.usage()), self.began.elapsed());
        self.look_at_metrics(stage);
        self.judge_memory(stage);
        Ok(self.report(stage, started_at, seconds, start, end, open_at_end))
    }

    /// Connects those who stay. Subscribers come before anything is published.
    fn connect(&mut self, stage: &Stage) -> Result<Cast, RunError> {
        let Soak { channels, publishers, subscribers, echoes, idle, .. } = *self.soak;
        let connect = |name: String, channels: &[u32], index: u32| {
            let compression =
                if index.is_multiple_of(3) { stage.compression } else { Compression::Off };
            let connected = Steady::connect(stage, name.clone(), channels, compression);
            connected.map_err(|end| RunError::NoConnection {
                wanted: self.soak.sockets(),
                url: stage.place.target.url(),
                errors: format!("{name}: {end}"),
            })
        };
        let mut readers = Vec::new();
        for index in 0..subscribers {
            let own = index % channels;
            let mut hears = vec![own];
            if index % 3 == 1 {
                // One more, or all of them.
                let more = if index.is_multiple_of(2) { 1 } else { channels - 1 };
                hears.extend((1..=more.min(channels - 1)).map(|next| (own + next) % channels));
            }
            readers.push(connect(format!("subscriber {index}"), &hears, index)?);
        }
        for index in 0..idle {
            readers.push(connect(format!("idle client {index}"), &[], index)?);
        }
        let mut cast = Cast { readers, publishers: Vec::new(), echoes: Vec::new() };
        for index in 0..channels * u32::from(publishers) {
            let name = format!("publisher {}", index + u32::from(stage.api_publishers));
            let channel = index / u32::from(publishers);
            cast.publishers.push(connect(name, &[channel], index)?);
        }
        for index in 0..echoes {
            cast.echoes.push(connect(format!("echo client {index}"), &[], index)?);
        }
        self.steady = cast.readers.len() + cast.publishers.len() + cast.echoes.len();
        Ok(cast)
    }

    /// Lets the load go on in laps until the time is over.
    fn laps(&mut self, stage: &Stage) {
        let lap = (self.soak.duration / 6).clamp(MIN_LAP, MAX_LAP);
        loop {
            stage.enter(Phase::Load);
            let end = (Instant::now() + lap).min(self.began + self.soak.duration);
            while Instant::now() < end && self.is_served(stage) {
                self.tick(stage);
            }
            stage.enter(Phase::Quiet);
            self.quiet_point(stage);
            let is_broken = stage.verdicts().broken() > 0;
            if self.began.elapsed() >= self.soak.duration || is_broken || !self.is_served(stage) {
                return;
            }
        }
    }

    /// Whether the server is still there; the soak is over where it is not.
    fn is_served(&self, stage: &Stage) -> bool {
        let is_gone = self.watch.server.is_some_and(|server| !server.is_alive());
        if is_gone && !stage.has_ended() {
            stage.enter(Phase::Ended);
            stage.broken(Invariant::Panics, "the server's process has ended".to_owned());
        }
        !stage.has_ended()
    }

    /// Waits until `is_done`; nobody waits for what takes longer than twice a client's patience.
    fn wait(&mut self, stage: &Stage, is_done: impl Fn(&Stage) -> bool) -> bool {
        let end = Instant::now() + 2 * PATIENCE + self.soak.handshake_timeout;
        while !is_done(stage) {
            if Instant::now() > end || !self.is_served(stage) {
                return false;
            }
            self.tick(stage);
        }
        true
    }

    /// Waits until everybody has got everything, or nothing has come for so long that it is lost.
    fn wait_for_arrivals(&mut self, stage: &Stage) {
        let mut latest = (stage.received.load(Ordering::Relaxed), Instant::now());
        while !stage.ledger().is_caught_up() && self.is_served(stage) {
            let received = stage.received.load(Ordering::Relaxed);
            if received != latest.0 {
                latest = (received, Instant::now());
            }
            if latest.1.elapsed() > LOST_AFTER {
                return;
            }
            self.tick(stage);
        }
    }

    /// Everything that was begun is done, and all is as it was.
    fn quiet_point(&mut self, stage: &Stage) {
        self.quiet_points += 1;
        if !self.wait(stage, Stage::is_idle) && self.is_served(stage) {
            let text =
                format!("quiet point {}: a client does not come to its end", self.quiet_points);
            stage.broken(Invariant::Connections, text);
        }
        self.wait_for_arrivals(stage);
        let lost = stage.ledger().settle();
        for breach in lost {
            stage.add(breach);
        }
        if let Some(before) = self.descriptors
            && let Some(open) = self.watch.descriptors_within(before, PATIENCE)
        {
            let text = format!(
                "quiet point {}: {open} are open, and {before} were in the beginning",
                self.quiet_points
            );
            stage.check(Invariant::Descriptors, if open > before { Err(text) } else { Ok(()) });
        }
        std::thread::sleep(MEMORY_SETTLES);
        // What the first lap has taken stays: the allocator's, and the kernel's sizes of buffers.
        if let Some(memory) = self.watch.memory()
            && self.quiet_points > 1
        {
            self.memory.add(self.began.elapsed().as_secs_f64(), memory);
        }
        self.look_at_metrics(stage);
    }

    fn look_at_metrics(&self, stage: &Stage) {
        let metrics = match self.watch.metrics() {
            Ok(None) => return,
            Ok(Some(metrics)) => metrics,
            Err(text) => {
                stage.broken(Invariant::Connections, text);
                return;
            }
        };
        let panics = metrics.sum("wsgate_panics_total", &[]).unwrap_or_default();
        let closes =
            metrics.sum("wsgate_connections_closed_total", &["code=\"1011\""]).unwrap_or_default();
        let text = format!("{panics} panics and {closes} Closes with 1011");
        let has_none = panics == 0.0 && closes == 0.0;
        stage.check(Invariant::Panics, if has_none { Ok(()) } else { Err(text) });
    }

    fn judge_memory(&self, stage: &Stage) {
        let told = self.memory.told();
        let most = self.soak.max_growth.as_u64() as f64;
        match self.memory.growth() {
            Some(growth) if growth > most => {
                let text = format!("grown by {told}; {} are allowed", format::bytes(most));
                stage.broken(Invariant::Memory, text);
            }
            Some(_) => stage.verdicts().remark(Invariant::Memory, format!("grown by {told}")),
            None if self.watch.memory().is_some() => {
                stage.verdicts().remark(Invariant::Memory, told);
            }
            None => {}
        }
        if let Some(before) = self.descriptors {
            let points = format::counted(self.quiet_points, "quiet point");
            let text = format!("no more than {before} at {points}");
            stage.verdicts().remark(Invariant::Descriptors, text);
        }
    }

    /// Waits a little, and tells how it goes.
    fn tick(&mut self, stage: &Stage) {
        std::thread::sleep(LOOK);
        let seconds = self.moment.at.elapsed().as_secs_f64();
        if seconds < MOMENT.as_secs_f64() {
            return;
        }
        let received = stage.received.load(Ordering::Relaxed);
        let usage = self.watch.server.map(|server| server.usage());
        let cores = usage
            .zip(self.moment.usage)
            .map(|(now, before)| now.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds);
        if let Some(usage) = usage {
            self.memory_max = self.memory_max.max(usage.memory);
        }
        let new = received.saturating_sub(self.moment.received);
        let open = stage.open.load(Ordering::Relaxed);
        let recent = std::mem::replace(&mut *stage.latency(), histogram());
        self.latency.add(&recent).expect("they have the same bounds");
        let quantile = |quantile| {
            (!recent.is_empty()).then(|| recent.value_at_quantile(quantile) as f64 / 1e3)
        };
        let (p50, p99) = (quantile(0.5), quantile(0.99));
        let point = Moment {
            at: self.began.elapsed().as_secs_f64(),
            open,
            received_per_second: new as f64 / seconds,
            p50,
            p99,
            cores,
            memory: usage.map(|usage| usage.memory),
        };
        self.moment = Moments { at: Instant::now(), received, usage };
        self.progress.update(&Status {
            phase: progress::Phase::Measuring {
                elapsed: self.began.elapsed(),
                total: self.soak.duration,
            },
            open,
            received_per_second: point.received_per_second,
            p99,
            errors: stage.verdicts().broken(),
            cores,
            memory: point.memory,
        });
        // A soak of days has as many points as one of minutes.
        let between = self.soak.duration.as_secs_f64() / MAX_MOMENTS;
        if self.timeline.last().is_none_or(|last| point.at - last.at >= between) {
            self.timeline.push(point);
        }
    }

    fn report(
        mut self,
        stage: &Stage,
        started_at: SystemTime,
        lasted: Duration,
        start: Usage,
        end: Option<Usage>,
        open_at_end: u64,
    ) -> Report {
        let seconds = lasted.as_secs_f64();
        self.latency.add(&*stage.latency()).expect("they have the same bounds");
        let checks = stage.verdicts().checks();
        let failed = checks.iter().filter(|check| !check.passed);
        let errors: BTreeMap<String, u64> =
            failed.map(|check| (format!("{}, see below", check.name), 1)).collect();
        let received = stage.received.load(Ordering::Relaxed);
        let mut parameters = self.soak.parameters();
        parameters.push(parameter("compression", stage.compression.name()));
        let server = self.watch.server.zip(end).map(|(server, end)| {
            let cpu_seconds = end.cpu.saturating_sub(start.cpu).as_secs_f64();
            ServerUsage {
                pid: server.pid(),
                cpu_seconds,
                cpu_per_message: None,
                cores: cpu_seconds / seconds,
                memory_before: self.before.memory,
                memory_at_end: end.memory,
                memory_max: self.memory_max.max(end.memory),
            }
        });
        let done = stage.done().clone().into_iter();
        let mut findings: Vec<_> = done
            .map(|(what, count)| finding(what, count as f64, "", format::count(count)))
            .collect();
        findings.push(finding(
            "quiet points",
            self.quiet_points as f64,
            "",
            format::count(self.quiet_points),
        ));
        for (what, is_watched) in [
            ("memory", self.watch.server.is_some() || self.watch.api.is_some()),
            ("panics", self.watch.api.is_some()),
        ] {
            if !is_watched {
                let text = "not watched: say --server-pid and --api".to_owned();
                findings.push(finding(what, f64::NAN, "", text));
            }
        }
        let connections = Connections {
            wanted: self.steady as u64,
            opened: stage.opened.load(Ordering::Relaxed),
            open_at_end,
        };
        Report {
            name: self.soak.name.clone().unwrap_or_else(|| Soak::KIND.to_owned()),
            kind: Soak::KIND,
            target: stage.place.target.url(),
            parameters,
            started_at: humantime::format_rfc3339_seconds(started_at).to_string(),
            seconds,
            connections,
            messages: Messages {
                sent: stage.sent.load(Ordering::Relaxed),
                received,
                received_bytes: stage.received_bytes.load(Ordering::Relaxed),
                received_per_second: received as f64 / seconds,
            },
            latency: latency(&self.latency),
            connect_latency: None,
            errors,
            server,
            findings,
            timeline: self.timeline,
            checks,
        }
    }
}

/// Those who stay, by what they do.
struct Cast {
    readers: Vec<Steady>,
    publishers: Vec<Steady>,
    echoes: Vec<Steady>,
}

/// Ends the soak for all clients when it is dropped.
struct EndAtLast<'a>(&'a Stage);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.enter(Phase::Ended);
    }
}
