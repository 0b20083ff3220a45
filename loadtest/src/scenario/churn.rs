//! Connections that come and go.

use crate::engine::plan::{Phase, Role};
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Place};
use crate::scenario::run::{Run, RunError, finding, told};
use crate::scenario::{Measured, Scenario, parameter};

/// Each client connects, has its echoes, closes by the closing handshake, and begins again; at
/// `--connect-rate` or as fast as it goes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Churn {
    /// Clients at a time
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Echoes of each
    #[arg(long, value_name = "N", default_value = "1")]
    messages: u32,
    /// Payload of a message
    #[arg(long, value_name = "SIZE", default_value = "64")]
    size: bytesize::ByteSize,
    #[command(flatten)]
    course: Course,
}

impl Measured for Churn {
    fn course(&self) -> &Course {
        &self.course
    }
}

impl Scenario for Churn {
    const KIND: &'static str = "churn";

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            parameter("connections", self.connections),
            parameter("messages", self.messages),
            parameter("size", self.size),
        ]
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        let role = Role::Churn { messages: self.messages };
        let mut plan = Run::plan(place, &self.course, vec![role; self.connections as usize]);
        plan.payload_bytes = self.size.as_u64() as usize;
        let mut run = Run::start(plan, place, Self::KIND, self.course.quiet)?;
        run.fleet.allow_all_to_connect();
        run.fleet.stay(Phase::WarmingUp, self.course.warmup)?;
        run.count_memory_from_here();
        run.measure(Phase::Measuring, self.course.duration)?;
        let (mut report, collected) = run.report(self)?;
        if report.connections.opened == 0 {
            let (wanted, url) = (self.connections as usize, place.target.url());
            return Err(RunError::NoConnection { wanted, url, errors: told(&report.errors) });
        }
        let completed = collected.measured.counts.completed;
        let rate = completed as f64 / report.seconds;
        let text = format!("{completed}, {rate:.0} a second");
        report.findings.push(finding("connections come and gone", completed as f64, "", text));
        if completed == 0 {
            report.errors.entry("no connection came and went".to_owned()).or_insert(1);
        } else if let Some(server) = &report.server {
            let each = server.cpu_seconds * 1e6 / completed as f64;
            let text = format!("{each:.1} µs");
            report.findings.push(finding("CPU of a connection come and gone", each, "µs", text));
        }
        Ok(report)
    }
}
