//! Starts the threads, leads them through the phases of a run, and collects what they measure.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{EventfdFlags, eventfd};

use crate::engine::plan::{Control, Phase, Plan, Role};
use crate::engine::sample::{Counts, Last, Sample, Told, histogram};
use crate::engine::worker::Worker;
use crate::report::model::Moment;
use crate::report::progress::{self, Progress, Status};
use crate::server_process::{ServerProcess, Usage};

/// How often the progress line is written anew, and a point of the timeline is made.
const MOMENT: Duration = Duration::from_millis(500);

/// Settling ends when nothing has arrived for so long. A busy machine may keep either end from running for
/// some tenths of a second.
const QUIET: Duration = Duration::from_millis(700);

/// The same, where a publication may wait as long as the second that a 503 asks for.
const QUIET_BY_HTTP: Duration = Duration::from_millis(1_500);

/// Settling ends after this at the latest.
const MAX_SETTLING: Duration = Duration::from_secs(30);

/// The clients of one run.
pub(crate) struct Fleet {
    pub(crate) plan: Arc<Plan>,
    pub(crate) server: Option<ServerProcess>,
    control: Arc<Control>,
    wakes: Vec<Arc<OwnedFd>>,
    threads: Vec<JoinHandle<()>>,
    told: Receiver<Told>,
    progress: Progress,
    phase: Phase,
    /// When the phase shall be over, as far as that is known.
    phase_began: Instant,
    phase_lasts: Option<Duration>,
    measuring_began: Option<Instant>,
    collected: Collected,
    /// Since the last point of the timeline.
    moment: Counted,
    moment_began: Instant,
    moment_usage: Option<Usage>,
    last_arrival: Instant,
}

/// All that was told in one phase.
pub(crate) struct Counted {
    pub(crate) counts: Counts,
    pub(crate) latency: Histogram<u64>,
    pub(crate) connect_latency: Histogram<u64>,
}

impl Counted {
    fn new() -> Self {
        Self { counts: Counts::default(), latency: histogram(), connect_latency: histogram() }
    }

    fn add(&mut self, sample: &Sample) {
        self.counts += sample.counts;
        let pairs = [
            (&mut self.latency, &sample.latency),
            (&mut self.connect_latency, &sample.connect_latency),
        ];
        for (sum, part) in pairs {
            if let Some(part) = part {
                sum.add(part).expect("they have the same bounds");
            }
        }
    }
}

/// All that was told in a run.
pub(crate) struct Collected {
    pub(crate) connecting: Counted,
    pub(crate) baseline: Counted,
    /// With the latency of what arrived while settling.
    pub(crate) measured: Counted,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) timeline: Vec<Moment>,
    pub(crate) last: Last,
    /// The largest memory of the server that was seen.
    pub(crate) memory_max: u64,
}

impl Collected {
    fn new() -> Self {
        Self {
            connecting: Counted::new(),
            baseline: Counted::new(),
            measured: Counted::new(),
            errors: BTreeMap::new(),
            timeline: Vec::new(),
            last: Last::default(),
            memory_max: 0,
        }
    }
}

/// A run that ends early leaves no client behind.
impl Drop for Fleet {
    fn drop(&mut self) {
        self.control.enter(Phase::Ended);
        self.wake();
        for thread in self.threads.drain(..) {
            // Whatever it died of, its run is over.
            _ = thread.join();
        }
    }
}

impl Fleet {
    /// Starts the threads. Nobody connects yet.
    ///
    /// # Errors
    ///
    /// The kernel refuses an event descriptor or a thread.
    pub(crate) fn start(
        plan: Plan,
        server: Option<ServerProcess>,
        progress: Progress,
    ) -> io::Result<Self> {
        let publishers = plan.roles.iter().filter(|role| role.publisher().is_some()).count();
        let control = Arc::new(Control::new(publishers));
        let plan = Arc::new(plan);
        let (tell, told) = channel();
        let (mut wakes, mut threads) = (Vec::new(), Vec::new());
        for index in 0..plan.threads {
            let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            wakes.push(Arc::clone(&wake));
            let (plan, control, tell) = (Arc::clone(&plan), Arc::clone(&control), tell.clone());
            let thread = std::thread::Builder::new().name(format!("clients {index}"));
            threads.push(thread.spawn(move || Worker::run(index, plan, control, &wake, tell))?);
        }
        let now = Instant::now();
        Ok(Self {
            plan,
            server,
            control,
            wakes,
            threads,
            told,
            progress,
            phase: Phase::Connecting,
            phase_began: now,
            phase_lasts: None,
            measuring_began: None,
            collected: Collected::new(),
            moment: Counted::new(),
            moment_began: now,
            moment_usage: server.map(ServerProcess::usage),
            last_arrival: now,
        })
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> u64 {
        self.control.open.load(Ordering::Acquire)
    }

    /// Everybody may connect from now on.
    pub(crate) fn allow_all_to_connect(&self) {
        self.control.may_connect.store(u64::MAX, Ordering::Release);
        self.wake();
    }

    /// What has gone wrong until now, by kind.
    pub(crate) fn errors_so_far(&mut self) -> io::Result<&BTreeMap<String, u64>> {
        // The threads tell every quarter of a second.
        let end = Instant::now() + Duration::from_millis(600);
        while Instant::now() < end {
            self.listen(Duration::from_millis(50))?;
        }
        Ok(&self.collected.errors)
    }

    /// How often something has gone wrong until now.
    fn errors(&self) -> u64 {
        self.collected.errors.values().sum()
    }

    /// Has the clients with a number below `limit` connect, and waits until they are, or have given up.
    pub(crate) fn connect(&mut self, limit: usize) -> io::Result<()> {
        self.control.may_connect.store(limit as u64, Ordering::Release);
        self.wake();
        let paced = self.plan.connect_rate.map_or(0.0, |rate| limit as f64 / rate);
        let patience = Duration::from_secs_f64(paced) + 2 * self.plan.connect_timeout;
        let goal = limit as u64;
        let settled = |control: &Control| {
            control.open.load(Ordering::Acquire) + control.failed.load(Ordering::Acquire)
        };
        // However many they are: as long as more come, more may come.
        loop {
            let before = settled(&self.control);
            self.until(patience, |control| settled(control) >= goal)?;
            let now = settled(&self.control);
            if now >= goal || now == before {
                return Ok(());
            }
        }
    }

    /// Has everybody leave and come again at once. Returns how long it took until `goal` connections were
    /// open again, and whether they are.
    pub(crate) fn storm(&mut self, goal: u64, patience: Duration) -> io::Result<(Duration, bool)> {
        let threads = self.threads.len() as u64;
        let left = self.control.left.load(Ordering::Acquire);
        let began = Instant::now();
        self.control.storms.fetch_add(1, Ordering::Release);
        self.wake();
        self.until(patience, |control| {
            control.left.load(Ordering::Acquire) >= left + threads
                && control.open.load(Ordering::Acquire) >= goal
        })?;
        Ok((began.elapsed(), self.open() >= goal))
    }

    /// Enters `phase` and stays there for `duration`.
    pub(crate) fn stay(&mut self, phase: Phase, duration: Duration) -> io::Result<()> {
        self.enter(phase, Some(duration));
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.listen(left)?;
        }
        Ok(())
    }

    /// Nothing is sent any more; waits until nothing arrives any more.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        self.enter(Phase::Settling, None);
        self.last_arrival = Instant::now();
        let end = Instant::now() + MAX_SETTLING;
        let by_http = |role: &Role| matches!(role, Role::HttpPublisher { .. });
        let quiet = if self.plan.roles.iter().any(by_http) { QUIET_BY_HTTP } else { QUIET };
        while self.last_arrival.elapsed() < quiet && Instant::now() < end {
            self.listen(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Ends the threads and returns all that they told.
    pub(crate) fn finish(mut self) -> io::Result<Collected> {
        self.enter(Phase::Ended, None);
        let mut running = self.threads.len();
        while running > 0 {
            match self.told.recv() {
                Ok(Told::Sample(sample)) => self.collect(&sample),
                Ok(Told::Last(last)) => {
                    running -= 1;
                    self.collected.last.lost += last.lost;
                    self.collected.last.unanswered += last.unanswered;
                    self.collected.last.stalled.extend(last.stalled);
                }
                Ok(Told::Failed(error)) => return Err(error),
                Err(_) => break,
            }
        }
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("bug: a thread of clients panicked"))?;
        }
        let Last { lost, unanswered, .. } = self.collected.last;
        for (kind, count) in [("messages lost", lost), ("messages unanswered", unanswered)] {
            if count > 0 {
                self.collected.errors.insert(kind.to_owned(), count);
            }
        }
        Ok(std::mem::replace(&mut self.collected, Collected::new()))
    }

    pub(crate) fn enter(&mut self, phase: Phase, lasts: Option<Duration>) {
        self.phase = phase;
        self.phase_began = Instant::now();
        self.phase_lasts = lasts;
        if phase == Phase::Measuring || phase == Phase::Baseline {
            self.measuring_began.get_or_insert(self.phase_began);
        }
        self.control.enter(phase);
        self.wake();
    }

    fn wake(&self) {
        for wake in &self.wakes {
            // It fails only when the counter is full, and then the thread is awake.
            _ = rustix::io::write(&**wake, &1u64.to_ne_bytes());
        }
    }

    fn until(
        &mut self,
        patience: Duration,
        mut is_done: impl FnMut(&Control) -> bool,
    ) -> io::Result<()> {
        let end = Instant::now() + patience;
        while !is_done(&self.control) && Instant::now() < end {
            self.listen(Duration::from_millis(2))?;
        }
        Ok(())
    }

    /// Hears what the threads tell for at most `time`.
    fn listen(&mut self, time: Duration) -> io::Result<()> {
        let next_moment = MOMENT.saturating_sub(self.moment_began.elapsed());
        match self.told.recv_timeout(time.min(next_moment)) {
            Ok(Told::Sample(sample)) => self.collect(&sample),
            Ok(Told::Last(_)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Told::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("bug: the threads of the clients have ended"));
            }
        }
        if self.moment_began.elapsed() >= MOMENT {
            self.make_moment();
        }
        if self.server.is_some_and(|server| !server.is_alive()) {
            return Err(io::Error::other("the server's process has ended"));
        }
        Ok(())
    }

    fn collect(&mut self, sample: &Sample) {
        if sample.counts.received > 0 {
            self.last_arrival = Instant::now();
        }
        self.moment.add(sample);
        for (kind, count) in &sample.errors {
            *self.collected.errors.entry(kind.clone()).or_default() += count;
        }
        let Collected { connecting, baseline, measured, .. } = &mut self.collected;
        match sample.phase {
            Phase::Connecting => connecting.add(sample),
            Phase::Baseline => baseline.add(sample),
            Phase::Measuring => measured.add(sample),
            Phase::Settling => {
                // It was due while measuring; only the moment of its arrival is outside.
                if let Some(latency) = &sample.latency {
                    measured.latency.add(latency).expect("they have the same bounds");
                }
            }
            Phase::WarmingUp | Phase::Ended => {}
        }
    }

    fn make_moment(&mut self) {
        let seconds = self.moment_began.elapsed().as_secs_f64();
        let moment = std::mem::replace(&mut self.moment, Counted::new());
        self.moment_began = Instant::now();
        let usage = self.server.map(ServerProcess::usage);
        let cores = usage
            .zip(self.moment_usage)
            .map(|(now, before)| now.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds);
        self.moment_usage = usage;
        if let Some(usage) = usage {
            self.collected.memory_max = self.collected.memory_max.max(usage.memory);
        }
        let quantile = |quantile| {
            let latency = &moment.latency;
            (!latency.is_empty()).then(|| latency.value_at_quantile(quantile) as f64 / 1e3)
        };
        let at = match self.measuring_began {
            Some(began) => began.elapsed().as_secs_f64(),
            None => -1.0,
        };
        let point = Moment {
            at,
            open: self.open(),
            received_per_second: moment.counts.received as f64 / seconds,
            p50: quantile(0.5),
            p99: quantile(0.99),
            cores,
            memory: usage.map(|usage| usage.memory),
        };
        let status = Status {
            phase: self.phase_shown(),
            open: point.open,
            received_per_second: point.received_per_second,
            p99: point.p99,
            errors: self.errors(),
            cores: point.cores,
            memory: point.memory,
        };
        self.progress.update(&status);
        // What comes before measuring is for the progress line alone.
        if self.measuring_began.is_some() {
            self.collected.timeline.push(point);
        }
    }

    fn phase_shown(&self) -> progress::Phase {
        let elapsed = self.phase_began.elapsed();
        let total = self.phase_lasts.unwrap_or(elapsed);
        match self.phase {
            Phase::Connecting => progress::Phase::Connecting {
                opened: self.open(),
                wanted: self.plan.roles.len() as u64,
            },
            Phase::WarmingUp => progress::Phase::WarmingUp { elapsed, total },
            Phase::Baseline | Phase::Measuring | Phase::Settling | Phase::Ended => {
                progress::Phase::Measuring { elapsed, total }
            }
        }
    }
}
