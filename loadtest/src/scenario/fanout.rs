//! Publications that go to many subscribers.

use crate::engine::plan::{Phase, Plan, Role};
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Messages, Offer, Place};
use crate::scenario::run::{Run, RunError};
use crate::scenario::{Measured, Scenario, parameter};

/// Every subscriber checks that it gets each publisher's messages, all of them and in order.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Fanout {
    #[command(flatten)]
    audience: Audience,
    #[command(flatten)]
    messages: Messages,
    #[command(flatten)]
    pub(super) offer: Offer,
    #[command(flatten)]
    course: Course,
}

/// Who publishes to whom.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Audience")]
pub(crate) struct Audience {
    /// Clients that read, over all channels. A publisher by WebSocket gets its messages too
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) subscribers: u32,
    /// Channels, over which subscribers and publishers spread evenly
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
    /// Clients that publish
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// How they publish; by HTTP each has one message in flight, and waits as long as a 503 says
    #[arg(long, value_name = "WAY", default_value = "websocket")]
    publish_by: PublishBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PublishBy {
    #[value(name = "websocket")]
    WebSocket,
    Http,
}

impl Audience {
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let publish_by = match self.publish_by {
            PublishBy::WebSocket => "websocket",
            PublishBy::Http => "http",
        };
        vec![
            parameter("subscribers", self.subscribers),
            parameter("channels", self.channels),
            parameter("publishers", self.publishers),
            parameter("publish-by", publish_by),
        ]
    }

    /// The plan for this audience, of which the first `stalled` subscribers stall.
    pub(crate) fn plan(
        &self,
        place: &Place,
        course: &Course,
        messages: &Messages,
        stalled: u32,
    ) -> Result<Plan, RunError> {
        let is_http = self.publish_by == PublishBy::Http;
        if is_http && place.api.is_none() {
            return Err(RunError::Settings(
                "publish-by is http, but api is not set: say where the API is".to_owned(),
            ));
        }
        if is_http && messages.in_flight > 1 {
            return Err(RunError::Settings(
                "publish-by is http, where each publisher has one message in flight: ask for more \
                 publishers instead of a larger in-flight"
                    .to_owned(),
            ));
        }
        let subscribers = (0..self.subscribers).map(|number| {
            let channel = number % self.channels;
            if number < stalled { Role::Stalled { channel } } else { Role::Subscriber { channel } }
        });
        let publishers = (0..self.publishers).map(|publisher| {
            let channel = u32::from(publisher) % self.channels;
            match self.publish_by {
                PublishBy::WebSocket => Role::Publisher { channel, publisher },
                PublishBy::Http => Role::HttpPublisher { channel, publisher },
            }
        });
        let mut plan = Run::plan(place, course, subscribers.chain(publishers).collect());
        messages.apply_to(&mut plan)?;
        Ok(plan)
    }
}

impl Measured for Fanout {
    fn course(&self) -> &Course {
        &self.course
    }
}

impl Scenario for Fanout {
    const KIND: &'static str = "fanout";

    fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = self.audience.parameters();
        parameters.extend(self.messages.parameters());
        parameters.extend(self.offer.parameters());
        parameters
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        let mut plan = self.audience.plan(place, &self.course, &self.messages, 0)?;
        plan.compression = self.offer.compression;
        let mut run = Run::start(plan, place, Self::KIND, self.course.quiet)?;
        run.connect()?;
        run.fleet.stay(Phase::WarmingUp, self.course.warmup)?;
        run.measure(Phase::Measuring, self.course.duration)?;
        Ok(run.report(self)?.0)
    }
}
