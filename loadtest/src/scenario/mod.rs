//! The scenarios: what is done to a server, and what is learnt from it.
//!
//! - [`arguments`]: what every scenario can be told.
//! - [`run`]: the course that all of them share, from the first connection to the report.
//! - one file for each scenario; [`soak`] is a room of its own.

pub(crate) mod arguments;
mod churn;
mod echo;
mod fanout;
mod idle;
mod run;
mod slow;
mod soak;
mod storm;

pub(crate) use churn::Churn;
pub(crate) use echo::Echo;
pub(crate) use fanout::Fanout;
pub(crate) use idle::Idle;
pub(crate) use run::RunError;
pub(crate) use slow::Slow;
pub(crate) use soak::Soak;
pub(crate) use storm::Storm;

use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Offer, Place};

/// One kind of load.
pub(crate) trait Scenario {
    /// As on the command line.
    const KIND: &'static str;

    /// What was asked for, as on the command line.
    fn parameters(&self) -> Vec<Parameter>;

    /// Does it all to the server at `place`.
    fn run(&self, place: &Place) -> Result<Report, RunError>;
}

/// One that connects, warms up, measures and settles, as [`run::Run`] does.
pub(crate) trait Measured: Scenario {
    fn course(&self) -> &Course;
}

/// Any kind of load that can be compared.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Any {
    /// Messages that come back
    Echo(Echo),
    /// Publications that go to many subscribers
    Fanout(Fanout),
    /// Connections on which nothing happens
    Idle(Idle),
    /// Everybody leaves and comes again at once
    Storm(Storm),
    /// A fan-out in which some readers stop reading
    Slow(Slow),
    /// Connections that come and go
    Churn(Churn),
}

impl Any {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Echo(_) => Echo::KIND,
            Self::Fanout(_) => Fanout::KIND,
            Self::Idle(_) => Idle::KIND,
            Self::Storm(_) => Storm::KIND,
            Self::Slow(_) => Slow::KIND,
            Self::Churn(_) => Churn::KIND,
        }
    }

    pub(crate) fn course(&self) -> &Course {
        match self {
            Self::Echo(scenario) => scenario.course(),
            Self::Fanout(scenario) => scenario.course(),
            Self::Idle(scenario) => scenario.course(),
            Self::Storm(scenario) => scenario.course(),
            Self::Slow(scenario) => scenario.course(),
            Self::Churn(scenario) => scenario.course(),
        }
    }

    /// What its clients offer, where they can.
    pub(crate) fn offer(&mut self) -> Option<&mut Offer> {
        match self {
            Self::Echo(scenario) => Some(&mut scenario.offer),
            Self::Fanout(scenario) => Some(&mut scenario.offer),
            Self::Idle(scenario) => Some(&mut scenario.offer),
            Self::Storm(_) | Self::Slow(_) | Self::Churn(_) => None,
        }
    }

    pub(crate) fn run(&self, place: &Place) -> Result<Report, RunError> {
        match self {
            Self::Echo(scenario) => scenario.run(place),
            Self::Fanout(scenario) => scenario.run(place),
            Self::Idle(scenario) => scenario.run(place),
            Self::Storm(scenario) => scenario.run(place),
            Self::Slow(scenario) => scenario.run(place),
            Self::Churn(scenario) => scenario.run(place),
        }
    }
}

fn parameter(name: &str, value: impl ToString) -> Parameter {
    Parameter { name: name.to_owned(), value: value.to_string() }
}
