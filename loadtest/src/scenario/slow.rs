//! A fan-out in which some readers stop reading: what do the others notice, and what happens to
//! those?

use std::collections::BTreeMap;

use crate::engine::plan::Phase;
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Messages, Place};
use crate::scenario::fanout::Audience;
use crate::scenario::run::{Run, RunError, finding, latency};
use crate::scenario::{Measured, Scenario, parameter};

/// For one duration everybody reads; for another the stalled ones do not; then they read what is left
/// for them.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Slow {
    /// How many of the subscribers stop reading
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    stalled: u32,
    #[command(flatten)]
    audience: Audience,
    #[command(flatten)]
    messages: Messages,
    #[command(flatten)]
    course: Course,
}

impl Measured for Slow {
    fn course(&self) -> &Course {
        &self.course
    }
}

impl Scenario for Slow {
    const KIND: &'static str = "slow";

    fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = vec![parameter("stalled", self.stalled)];
        parameters.extend(self.audience.parameters());
        parameters.extend(self.messages.parameters());
        parameters
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        if self.stalled >= self.audience.subscribers {
            return Err(RunError::Settings(format!(
                "stalled is {}, but there are {} subscribers: somebody has to go on reading",
                self.stalled, self.audience.subscribers
            )));
        }
        let plan = self.audience.plan(place, &self.course, &self.messages, self.stalled)?;
        let mut run = Run::start(plan, place, Self::KIND, self.course.quiet)?;
        run.connect()?;
        run.fleet.stay(Phase::WarmingUp, self.course.warmup)?;
        run.fleet.stay(Phase::Baseline, self.course.duration)?;
        run.measure(Phase::Measuring, self.course.duration)?;
        let (mut report, collected) = run.report(self)?;

        let before = latency(&collected.baseline.latency);
        if let (Some(before), Some(after)) = (before, &report.latency) {
            let factor = after.p99 / before.p99;
            let text = format!("{:.0} µs before, {:.0} µs with them", before.p99, after.p99);
            report.findings.push(finding("p99 of those who read", factor, "", text));
        }
        let stalled = &collected.last.stalled;
        let mut fates: BTreeMap<String, u64> = BTreeMap::new();
        for reader in stalled {
            let fate = match reader.close_code {
                Some(code) => format!("closed with {code}"),
                None if reader.is_cut => "cut".to_owned(),
                None => "open".to_owned(),
            };
            *fates.entry(fate).or_default() += 1;
        }
        for (fate, count) in fates {
            let text = format!("{count} of {}", stalled.len());
            report.findings.push(finding(&format!("stalled, {fate}"), count as f64, "", text));
        }
        let [received, gaps, tail] = stalled.iter().fold([0; 3], |sum, reader| {
            [sum[0] + reader.received, sum[1] + reader.gaps, sum[2] + reader.tail]
        });
        for (label, sum) in [
            ("messages that the stalled got", received),
            ("messages missing between those", gaps),
            ("messages missing after those", tail),
        ] {
            report.findings.push(finding(label, sum as f64, "messages", sum.to_string()));
        }
        Ok(report)
    }
}
