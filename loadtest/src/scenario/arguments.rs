//! What every scenario can be told, as a person writes it.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;

use crate::client::deflate::Compression;
use crate::client::payload::Payload;
use crate::engine::plan::{Api, Load, Plan};
use crate::report::model::Parameter;
use crate::scenario::{RunError, parameter};
use crate::server_process::ServerProcess;
use crate::target::Target;

/// The server under test.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) target: Target,
    pub(crate) api: Option<Api>,
    /// Lines of the handshake's request.
    pub(crate) headers: Vec<String>,
    pub(crate) server: Option<ServerProcess>,
}

/// How a run goes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Course")]
pub(crate) struct Course {
    /// What the report calls it
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// How long is measured
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long the load goes before measuring begins
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) warmup: Duration,
    /// Threads of clients
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) threads: NonZeroUsize,
    /// Connections opened in a second [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) connect_rate: Option<f64>,
    /// Handshakes under way at a time
    #[arg(long, value_name = "N", default_value = "256")]
    pub(crate) max_dialing: NonZeroUsize,
    /// How long a handshake may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// Clients never sleep: each thread takes a whole core, and no server is charged with waking it
    #[arg(long)]
    pub(crate) busy: bool,
    /// No progress line
    #[arg(long)]
    pub(crate) quiet: bool,
}

impl Course {
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = vec![
            parameter("duration", humantime::format_duration(self.duration)),
            parameter("warmup", humantime::format_duration(self.warmup)),
            parameter("threads", self.threads),
        ];
        if self.busy {
            parameters.push(parameter("busy", true));
        }
        if let Some(rate) = self.connect_rate {
            parameters.push(parameter("connect-rate", rate));
        }
        parameters
    }
}

/// What is sent.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Messages")]
pub(crate) struct Messages {
    /// Payload of a message, such as 64 or 16KiB
    #[arg(long, value_name = "SIZE", default_value = "64", value_parser = size)]
    pub(crate) size: usize,
    /// What the payload is made of
    #[arg(long, value_name = "WHAT", default_value = "filler")]
    pub(crate) payload: Payload,
    /// What the payload is sent as
    #[arg(long, value_name = "KIND", default_value = "binary")]
    pub(crate) message: MessageKind,
    /// Messages that each sender keeps on their way (a closed loop)
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) in_flight: u32,
    /// Messages sent in a second by all senders together, whatever comes back (an open loop)
    #[arg(long, value_name = "N", conflicts_with = "in_flight", value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

/// RFC 6455's two kinds of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MessageKind {
    Text,
    Binary,
}

impl Messages {
    pub(crate) fn load(&self) -> Load {
        match self.rate {
            Some(per_second) => Load::Open { per_second },
            None => Load::Closed { in_flight: self.in_flight },
        }
    }

    pub(crate) fn is_text(&self) -> bool {
        self.message == MessageKind::Text
    }

    /// Puts what is sent, and when, into `plan`.
    ///
    /// # Errors
    ///
    /// The size is too small for what the payload is made of.
    pub(crate) fn apply_to(&self, plan: &mut Plan) -> Result<(), RunError> {
        let is_measured_by_readers = plan.roles.iter().any(|role| role.publisher().is_some());
        let min_bytes = self.payload.min_bytes();
        if self.size < min_bytes && (is_measured_by_readers || self.payload == Payload::Json) {
            return Err(RunError::Settings(format!(
                "size is {}, but a message of {} has at least {min_bytes} bytes{}",
                self.size,
                self.payload.name(),
                if is_measured_by_readers { " where its readers measure it" } else { "" },
            )));
        }
        plan.load = self.load();
        plan.payload = self.payload;
        plan.payload_bytes = self.size;
        plan.is_text = self.is_text();
        Ok(())
    }

    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let message = if self.is_text() { "text" } else { "binary" };
        let load = match self.rate {
            Some(rate) => parameter("rate", rate),
            None => parameter("in-flight", self.in_flight),
        };
        let mut parameters = vec![
            parameter("size", ByteSize(self.size as u64)),
            parameter("message", message),
            load,
        ];
        if self.payload != Payload::Filler {
            parameters.push(parameter("payload", self.payload.name()));
        }
        parameters
    }
}

/// What clients offer in their handshake.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Compression")]
pub(crate) struct Offer {
    /// Offer permessage-deflate. The clients inflate, or compare with what was inflated; what they send
    /// is not compressed
    #[arg(long, value_name = "MODE", default_value = "off")]
    pub(crate) compression: Compression,
}

impl Offer {
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        match self.compression {
            Compression::Off => Vec::new(),
            mode => vec![parameter("compression", mode.name())],
        }
    }
}

fn size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse()?;
    match size.as_u64() {
        bytes @ 0..=0x4000_0000 => Ok(bytes as usize),
        _ => Err("more than 1GiB".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        Ok(_) => Err("must be more than 0".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
