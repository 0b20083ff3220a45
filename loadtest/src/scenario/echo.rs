//! Messages that come back.

use crate::engine::plan::{Phase, Role};
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Messages, Offer, Place};
use crate::scenario::run::{Run, RunError};
use crate::scenario::{Measured, Scenario, parameter};

/// Every message comes back to its sender, and is compared with what was sent.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Echo {
    /// Clients
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    #[command(flatten)]
    messages: Messages,
    #[command(flatten)]
    pub(super) offer: Offer,
    #[command(flatten)]
    course: Course,
}

impl Measured for Echo {
    fn course(&self) -> &Course {
        &self.course
    }
}

impl Scenario for Echo {
    const KIND: &'static str = "echo";

    fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = vec![parameter("connections", self.connections)];
        parameters.extend(self.messages.parameters());
        parameters.extend(self.offer.parameters());
        parameters
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        let mut plan = Run::plan(place, &self.course, vec![Role::Echo; self.connections as usize]);
        self.messages.apply_to(&mut plan)?;
        plan.compression = self.offer.compression;
        let mut run = Run::start(plan, place, Self::KIND, self.course.quiet)?;
        run.connect()?;
        run.fleet.stay(Phase::WarmingUp, self.course.warmup)?;
        run.measure(Phase::Measuring, self.course.duration)?;
        Ok(run.report(self)?.0)
    }
}
