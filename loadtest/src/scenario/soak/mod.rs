//! A mixed load for a long time, with clients that come and go and clients that break the rules: does
//! everything hold that is promised, and is nothing left behind?
//!
//! - [`course`]: who there is, the laps and the quiet points between them, the report.
//! - [`promises`]: what channels promise, and whether it was kept. Pure.
//! - [`verdicts`]: all that has to hold, and what broke it.
//! - [`stage`]: what all clients share.
//! - [`socket`]: one client, with a thread's patience.
//! - [`load`]: those who stay.
//! - [`churn`]: those who come and go.
//! - [`faults`]: those who break the rules.
//! - [`watch`]: the server's memory and descriptors.
//!
//! It is no measurement of speed: clients are paced, and each is a thread of its own with blocking
//! sockets, so that what it does reads as a story. The time is cut into laps, each of which ends at a
//! quiet point: nothing is begun, what is under way arrives, who came goes; then nobody may miss a
//! message, and descriptors and memory have to be what they were. What is broken ends the soak at its
//! next quiet point.

mod churn;
mod course;
mod faults;
mod load;
mod promises;
mod socket;
mod stage;
mod verdicts;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use crate::client::deflate::Compression;
use crate::engine::plan::Api;
use crate::peers::{Peer, Running, StartOptions};
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::Place;
use crate::scenario::run::{RunError, raise_descriptor_limit};
use crate::scenario::soak::course::Course;
use crate::scenario::soak::faults::Fault;
use crate::scenario::soak::load::close;
use crate::scenario::soak::stage::{Limits, Stage};
use crate::scenario::{Scenario, parameter};
use crate::server_process::ServerProcess;
use crate::target::Target;

/// Mixed load, churn and faults; everything that is promised is checked all the time, and memory and
/// descriptors at quiet points.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Soak {
    /// Start this gateway, instead of one that runs at --url
    #[arg(long, value_name = "FILE", help_heading = "Server", conflicts_with_all = ["url", "api", "server_pid"])]
    gateway: Option<PathBuf>,
    /// Its shards
    #[arg(long, value_name = "N", default_value = "2", help_heading = "Server")]
    shards: usize,
    /// One more argument of it; may be repeated
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, help_heading = "Server")]
    gateway_argument: Vec<String>,
    /// What the server takes as one message; a gateway that is started is told
    #[arg(long, value_name = "SIZE", default_value = "64KiB", help_heading = "Server")]
    max_message_bytes: ByteSize,
    /// How much the server keeps for a reader before it closes it with 1008; a gateway that is started
    /// is told
    #[arg(long, value_name = "SIZE", default_value = "1MiB", help_heading = "Server")]
    outbound_queue_bytes: ByteSize,
    /// How long the server waits for a handshake; a gateway that is started is told
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration, help_heading = "Server")]
    handshake_timeout: Duration,
    /// Channels
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=64), help_heading = "Load")]
    channels: u32,
    /// Publishers by WebSocket of each channel; with --api there is one by the API too
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Load")]
    publishers: u16,
    /// Publications a second, of all who publish by WebSocket
    #[arg(long, value_name = "N", default_value = "150", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Load")]
    rate: u32,
    /// Subscribers; every third hears several channels
    #[arg(long, value_name = "N", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Load")]
    subscribers: u32,
    /// Clients of the echo
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(0..=200), help_heading = "Load")]
    echoes: u32,
    /// Clients that do nothing but answer Pings
    #[arg(long, value_name = "N", default_value = "60", value_parser = clap::value_parser!(u32).range(0..=10_000), help_heading = "Load")]
    idle: u32,
    /// What every third client offers [default: deflate, where the server accepts it]
    #[arg(long, value_name = "MODE", help_heading = "Load")]
    compression: Option<Compression>,
    /// Clients that come and go, at a time
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(0..=200), help_heading = "Churn and faults")]
    visitors: u32,
    /// Clients that break rules, at a time
    #[arg(long, value_name = "N", default_value = "6", value_parser = clap::value_parser!(u32).range(0..=200), help_heading = "Churn and faults")]
    intruders: u32,
    /// Faults that are not committed
    #[arg(long, value_name = "FAULTS", value_delimiter = ',', help_heading = "Churn and faults")]
    without: Vec<Fault>,
    /// By how much the server's memory may have grown at the end, by its trend over the quiet points but
    /// the first
    #[arg(long, value_name = "SIZE", default_value = "4MiB", help_heading = "Course")]
    max_growth: ByteSize,
    /// What the report calls it
    #[arg(long, value_name = "TEXT", help_heading = "Course")]
    name: Option<String>,
    /// How long it goes
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration, help_heading = "Course")]
    duration: Duration,
    /// What is random is the same for the same number
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Course")]
    seed: u64,
    /// No progress line
    #[arg(long, help_heading = "Course")]
    quiet: bool,
}

impl Scenario for Soak {
    const KIND: &'static str = "soak";

    fn parameters(&self) -> Vec<Parameter> {
        let without: Vec<String> = self.without.iter().map(|fault| format!("{fault:?}")).collect();
        let mut parameters = vec![
            parameter("channels", self.channels),
            parameter("publishers", self.publishers),
            parameter("rate", self.rate),
            parameter("subscribers", self.subscribers),
            parameter("echoes", self.echoes),
            parameter("idle", self.idle),
            parameter("visitors", self.visitors),
            parameter("intruders", self.intruders),
            parameter("seed", self.seed),
            parameter("duration", humantime::format_duration(self.duration)),
        ];
        if !without.is_empty() {
            parameters.push(parameter("without", without.join(",")));
        }
        parameters
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        if place.target.tls.is_some() {
            return Err(RunError::Settings(format!(
                "the URL is {}, but a soak speaks without TLS: name a plain listener of the gateway",
                place.target.url(),
            )));
        }
        raise_descriptor_limit(self.sockets())?;
        let mut place = place.clone();
        let gateway = self.gateway.as_ref().map(|gateway| self.start(gateway)).transpose()?;
        if let Some(gateway) = &gateway {
            place.target = Target::new(&format!("ws://{}", gateway.address))
                .map_err(|error| RunError::Settings(error.to_string()))?;
            place.api =
                gateway.api.map(|address| Api { address, host: address.to_string(), key: None });
            place.server = ServerProcess::new(gateway.pid).ok();
        }
        let stage = self.stage(place);
        let report = Course::new(self, &stage).run(&stage)?;
        for (name, found) in report.failed_checks().map(|check| (check.name, &check.found)) {
            eprintln!("loadtest: soak: {name}: {found}");
        }
        if let Some(log) = gateway.map(|gateway| gateway.log()).filter(|log| !log.is_empty())
            && report.failed_checks().next().is_some()
        {
            eprintln!("loadtest: soak: the gateway says:\n{log}");
        }
        Ok(report)
    }
}

impl Soak {
    fn sockets(&self) -> usize {
        let publishers = u32::from(self.publishers) * self.channels;
        let steady = publishers + self.subscribers + self.echoes + self.idle;
        (steady + self.channels + self.visitors + 2 * self.intruders) as usize
    }

    fn start(&self, gateway: &Path) -> Result<Running, RunError> {
        let mut arguments = vec![
            format!("--max-message-bytes={}", self.max_message_bytes.as_u64()),
            format!("--outbound-queue-bytes={}", self.outbound_queue_bytes.as_u64()),
            format!("--handshake-timeout={}ms", self.handshake_timeout.as_millis()),
        ];
        arguments.extend_from_slice(&self.gateway_argument);
        let options = StartOptions {
            gateway: gateway.to_owned(),
            shards: self.shards,
            compression: None,
            is_tls: false,
            gateway_arguments: arguments,
            // So that a short soak has seen some.
            heartbeat: Some(Duration::from_secs(2)),
        };
        let started = Peer::Gateway.start(&options);
        started.map_err(|error| std::io::Error::other(error.to_string()).into())
    }

    fn stage(&self, place: Place) -> Stage {
        let limits = Limits {
            max_message_bytes: self.max_message_bytes.as_u64() as usize,
            outbound_queue_bytes: self.outbound_queue_bytes.as_u64() as usize,
            handshake_timeout: self.handshake_timeout,
        };
        let by_api = if place.api.is_some() { self.channels } else { 0 };
        let by_socket = |channel| (0..self.publishers).map(move |_| channel);
        let publishers = (0..by_api).chain((0..self.channels).flat_map(by_socket));
        let compression = self.compression.unwrap_or(Compression::Deflate);
        let mut stage =
            Stage::new(place, limits, compression, self.channels, by_api as u16, publishers);
        if self.compression.is_none() {
            match stage.open(&stage.place.target.echo(0), compression) {
                // How well it closes is for others to find out.
                Ok(mut socket) => _ = close(&mut socket, "the first client"),
                Err(_) => stage.compression = Compression::Off,
            }
        }
        stage
    }

    fn faults(&self) -> Vec<Fault> {
        Fault::ALL.into_iter().filter(|fault| !self.without.contains(fault)).collect()
    }
}
