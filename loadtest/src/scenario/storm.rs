//! Everybody leaves and comes again at once, as after the restart of a load balancer.

use std::time::Duration;

use crate::engine::plan::{Phase, Role};
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Place};
use crate::scenario::run::{Run, RunError, finding};
use crate::scenario::{Measured, Scenario, parameter};

/// A client whose handshake fails tries again until it is back.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Storm {
    /// Clients
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How often all of them leave
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    storms: u32,
    /// How long they stay in between
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    hold: Duration,
    /// How long they may take to come back
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    course: Course,
}

impl Measured for Storm {
    fn course(&self) -> &Course {
        &self.course
    }
}

impl Scenario for Storm {
    const KIND: &'static str = "storm";

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            parameter("connections", self.connections),
            parameter("storms", self.storms),
            parameter("hold", humantime::format_duration(self.hold)),
        ]
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        let roles = vec![Role::Idle; self.connections as usize];
        let mut plan = Run::plan(place, &self.course, roles);
        plan.retries = true;
        // All at once means all.
        plan.max_dialing = usize::MAX;
        let mut run = Run::start(plan, place, Self::KIND, self.course.quiet)?;
        run.connect()?;
        let before = run.usage();
        run.begin_measuring(Phase::Measuring, None);
        let (mut times, mut unfinished) = (Vec::new(), 0);
        let goal = run.fleet.open();
        for _ in 0..self.storms {
            let (time, is_over) = run.fleet.storm(goal, self.patience)?;
            times.push(time.as_secs_f64());
            unfinished += u64::from(!is_over);
            run.fleet.stay(Phase::Measuring, self.hold)?;
        }
        let used = run.usage().cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6;
        run.end_measuring();
        let (mut report, collected) = run.report(self)?;
        let missing = report.connections.wanted.saturating_sub(report.connections.open_at_end);
        if missing > 0 {
            report.errors.insert("not back after the storm".to_owned(), missing);
        }
        if unfinished > 0 {
            report.errors.insert("storms that not all came back from".to_owned(), unfinished);
        }
        times.sort_by(f64::total_cmp);
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        let text = format!("{median:.2} s in the median, {longest:.2} s at most");
        report.findings.push(finding("until all were back", median, "s", text));
        if report.server.is_some() && collected.measured.counts.opened > 0 {
            let each = used / collected.measured.counts.opened as f64;
            let text = format!("{each:.1} µs");
            report.findings.push(finding("CPU of a connection come and gone", each, "µs", text));
        }
        Ok(report)
    }
}
