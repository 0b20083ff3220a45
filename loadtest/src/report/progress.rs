//! What is going on? One live line on standard error while a run goes.
//!
//! Where standard error is no terminal there is nothing to redraw: then it is one plain line now
//! and then, for the log of a build server. With `quiet` there is nothing.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format;

/// How a run stands.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// What is being done.
    pub phase: Phase,
    /// Open connections.
    pub open: u64,
    /// Messages received in a second, lately.
    pub received_per_second: f64,
    /// 99th percentile of the latency in microseconds, lately.
    pub p99: Option<f64>,
    /// Errors since the beginning.
    pub errors: u64,
    /// Cores that the server uses, where its process is known.
    pub cores: Option<f64>,
    /// Anonymous resident memory of the server in bytes, where its process is known.
    pub memory: Option<u64>,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening connections.
    Connecting {
        /// How many are open.
        opened: u64,
        /// How many there are to be.
        wanted: u64,
    },
    /// Under load, but not yet measured.
    WarmingUp {
        /// Since it began.
        elapsed: Duration,
        /// How long it takes.
        total: Duration,
    },
    /// Under load and measured.
    Measuring {
        /// Since it began.
        elapsed: Duration,
        /// How long it takes.
        total: Duration,
    },
}

impl Phase {
    /// How much of it is done, 0 to 1.
    fn done(self) -> f64 {
        let (done, whole) = match self {
            Self::Connecting { opened, wanted } => (opened as f64, wanted as f64),
            Self::WarmingUp { elapsed, total } | Self::Measuring { elapsed, total } => {
                (elapsed.as_secs_f64(), total.as_secs_f64())
            }
        };
        if whole > 0.0 { (done / whole).clamp(0.0, 1.0) } else { 1.0 }
    }

    fn said(self) -> String {
        let times = |elapsed: Duration, total: Duration| {
            let total_seconds = total.as_secs_f64();
            format!("{:.1} of {}", elapsed.min(total).as_secs_f64(), format::seconds(total_seconds))
        };
        match self {
            Self::Connecting { opened, wanted } => {
                format!("connecting {} of {}", format::count(opened), format::count(wanted))
            }
            Self::WarmingUp { elapsed, total } => format!("warming up {}", times(elapsed, total)),
            Self::Measuring { elapsed, total } => format!("measuring {}", times(elapsed, total)),
        }
    }
}

/// The live line of one run. It disappears with [`Progress::finish`], or when dropped.
#[derive(Debug)]
pub struct Progress {
    name: String,
    output: Output,
}

#[derive(Debug)]
enum Output {
    Quiet,
    Live(ProgressBar),
    /// Holds when the last line was written, and in which kind of phase.
    Lines(Mutex<Option<(Instant, std::mem::Discriminant<Phase>)>>),
}

impl Progress {
    /// Begins the line of the run called `name`.
    #[must_use]
    pub fn new(name: &str, quiet: bool) -> Self {
        let name = format::plain(name);
        let output = if quiet {
            Output::Quiet
        } else if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            // Four times a second is often enough to look alive, and costs nothing.
            let target = ProgressDrawTarget::stderr_with_hz(4);
            let style = ProgressStyle::with_template("{prefix} {bar:12} {wide_msg}")
                .expect("the template is a constant")
                .progress_chars("━╸─");
            let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), target).with_style(style);
            bar.set_prefix(format::shortened(&name, 24));
            Output::Live(bar)
        } else {
            Output::Lines(Mutex::new(None))
        };
        Self { name, output }
    }

    /// Shows how the run stands. May be called as often as one likes.
    pub fn update(&self, status: &Status) {
        match &self.output {
            Output::Quiet => {}
            Output::Live(bar) => {
                bar.set_position((status.phase.done() * BAR_STEPS as f64) as u64);
                bar.set_message(line(status));
            }
            Output::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                let kind = std::mem::discriminant(&status.phase);
                let is_due =
                    last.is_none_or(|(at, phase)| phase != kind || at.elapsed() >= BETWEEN_LINES);
                if is_due {
                    *last = Some((Instant::now(), kind));
                    eprintln!("{}: {}", self.name, line(status));
                }
            }
        }
    }

    /// Removes the line, so that the result can be written where it stood.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Output::Live(bar) = &self.output {
            bar.finish_and_clear();
        }
    }
}

const BAR_STEPS: u64 = 1000;

/// The log of a build server is read by people.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// A status in one line, the most important first: a narrow terminal cuts the end off.
fn line(status: &Status) -> String {
    let mut parts = vec![status.phase.said()];
    if status.errors > 0 {
        parts.push(format::counted(status.errors, "error").to_uppercase());
    }
    if !matches!(status.phase, Phase::Connecting { .. }) {
        parts.push(format!("{} open", format::count(status.open)));
        parts.push(format::per_second(status.received_per_second));
    }
    parts.extend(status.p99.map(|p99| format!("p99 {}", format::microseconds(p99))));
    parts.extend(status.cores.map(format::cores));
    parts.extend(status.memory.map(|memory| format::bytes(memory as f64)));
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: Status = Status {
        phase: Phase::Measuring {
            elapsed: Duration::from_millis(3210),
            total: Duration::from_secs(10),
        },
        open: 1000,
        received_per_second: 123_456.7,
        p99: Some(1234.0),
        errors: 0,
        cores: Some(0.93),
        memory: Some(12 << 20),
    };

    #[test]
    fn line_says_phase_load_and_server() {
        assert_eq!(
            line(&STATUS),
            "measuring 3.2 of 10 s · 1,000 open · 123,457/s · p99 1.23 ms · 0.93 cores · 12 MiB"
        );
    }

    #[test]
    fn line_of_a_server_that_is_not_known_has_only_the_load() {
        let status = Status {
            phase: Phase::Connecting { opened: 1234, wanted: 10_000 },
            p99: None,
            cores: None,
            memory: None,
            ..STATUS
        };
        assert_eq!(line(&status), "connecting 1,234 of 10,000");
    }

    #[test]
    fn errors_stand_before_all_that_may_be_cut_off() {
        let status = Status { errors: 3, received_per_second: f64::NAN, ..STATUS };
        assert!(line(&status).starts_with("measuring 3.2 of 10 s · 3 ERRORS · 1,000 open · – · "));
    }

    #[test]
    fn phase_is_never_more_than_done() {
        let second = Duration::from_secs(1);
        let over = Phase::Measuring { elapsed: 3 * second, total: second };
        assert!((over.done() - 1.0).abs() < f64::EPSILON);
        assert_eq!(over.said(), "measuring 1.0 of 1 s");
        assert!((Phase::Connecting { opened: 0, wanted: 0 }.done() - 1.0).abs() < f64::EPSILON);
        assert!(
            (Phase::WarmingUp { elapsed: second, total: 2 * second }.done() - 0.5).abs()
                < f64::EPSILON
        );
    }

    #[test]
    fn progress_survives_every_use() {
        for quiet in [true, false] {
            let progress = Progress::new("a\u{1b}[2Jb", quiet);
            progress.update(&STATUS);
            progress.update(&Status { cores: Some(f64::INFINITY), ..STATUS });
            progress.finish();
        }
    }
}
