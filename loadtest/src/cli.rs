//! The command line: what a person asks for, and what they are told.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::client::tls::Trust;
use crate::compare::{self, Compare};
use crate::engine::plan::Api;
use crate::floor;
use crate::peers_command::Peers;
use crate::report::model::{Check, Comparison, Document, Report};
use crate::report::{format, html, json, machine, table};
use crate::scenario::arguments::Place;
use crate::scenario::{Churn, Echo, Fanout, Idle, Scenario, Slow, Soak, Storm};
use crate::server_process::ServerProcess;
use crate::suite::{self, Run};
use crate::target::{Dialect, Target, authority};

/// Load tests for WebSocket servers
///
/// Exit status: 0, 1 where the run failed or a condition is not met, 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Single(Single),
    /// The scenarios of a TOML file
    Run(Run),
    /// The same scenario against several servers in turns
    Compare(Compare),
    /// A server that does only what the kernel makes every server do
    Floor(Floor),
    /// The servers to compare with: which there are, and how they come
    Peers(Peers),
}

/// A scenario against one server.
#[derive(Debug, Subcommand)]
pub(crate) enum Single {
    /// Messages that come back
    Echo(One<Echo>),
    /// Publications that go to many subscribers
    Fanout(One<Fanout>),
    /// Connections on which nothing happens: memory and CPU of each
    Idle(One<Idle>),
    /// Everybody leaves and comes again at once
    Storm(One<Storm>),
    /// A fan-out in which some readers stop reading
    Slow(One<Slow>),
    /// Connections that come and go
    Churn(One<Churn>),
    /// Mixed load, churn and faults for a long time, with everything checked that is promised
    Soak(One<Soak>),
}

/// What there is to be told about one scenario against one server.
#[derive(Clone, Debug, Args)]
pub(crate) struct One<S: Args> {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    scenario: S,
}

/// Where the server is.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct At {
    /// The server, at ws:// or, with --ca or --insecure, at wss://
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080")]
    pub(crate) url: String,
    /// PEM file with the certificates by which a server at wss:// is believed
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Believe whoever answers at wss://
    #[arg(long, conflicts_with = "ca")]
    pub(crate) insecure: bool,
    /// Path of the echo; {connection} stands for a number of each connection's own
    #[arg(long, value_name = "PATH", default_value = "/echo")]
    pub(crate) echo_path: String,
    /// Path of a channel; {channel} stands for its name
    #[arg(long, value_name = "PATH", default_value = "/channels/{channel}")]
    pub(crate) channel_path: String,
    /// How the server is spoken to
    #[arg(long, value_name = "DIALECT", default_value = "websocket")]
    pub(crate) dialect: Dialect,
    /// A line of the handshake's request, such as "Origin: https://example.com"; may be repeated
    #[arg(long, value_name = "LINE")]
    pub(crate) header: Vec<String>,
    /// Where publications by HTTP go, such as http://127.0.0.1:8081
    #[arg(long, value_name = "URL")]
    pub(crate) api: Option<String>,
    /// X-API-Key of those
    #[arg(long, value_name = "KEY", env = "LOADTEST_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// The server's process on this machine: its CPU and memory, with those of its children
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
}

impl At {
    pub(crate) fn place(&self) -> Result<Place, Failure> {
        let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
        let trust = match (&self.ca, self.insecure) {
            (Some(path), _) => Some(Trust::Authorities(path)),
            (None, true) => Some(Trust::Anybody),
            (None, false) => None,
        };
        let target = Target::with_trust(&self.url, trust);
        let mut target = target.map_err(|error| usage(&error))?;
        target.dialect = self.dialect;
        target.echo_path.clone_from(&self.echo_path);
        target.channel_path.clone_from(&self.channel_path);
        let api = self.api.as_deref().map(|url| authority(url, "http://")).transpose();
        let api = api.map_err(|error| usage(&error))?;
        let api = api.map(|(host, address)| Api { address, host, key: self.api_key.clone() });
        if let Some(line) =
            self.header.iter().find(|line| !line.contains(':') || line.contains(['\r', '\n']))
        {
            return Err(Failure::Usage(format!(
                "header is \"{line}\", but a header is of the form \"Name: value\""
            )));
        }
        let server = self.server_pid.map(ServerProcess::new).transpose();
        let server = server.map_err(|error| usage(&error))?;
        Ok(Place { target, api, headers: self.header.clone(), server })
    }
}

/// What the run has to show.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Conditions, not met: exit status 1")]
pub(crate) struct Conditions {
    /// 99th percentile of the latency at most
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_p99: Option<Duration>,
    /// Messages received in a second at least
    #[arg(long, value_name = "N")]
    min_rate: Option<f64>,
    /// Errors at most
    #[arg(long, value_name = "N")]
    max_errors: Option<u64>,
}

impl Conditions {
    pub(crate) fn check(&self, report: &mut Report) {
        if let Some(wanted) = self.max_p99 {
            let wanted = wanted.as_secs_f64() * 1e6;
            // What has no connection to measure has not met it.
            let latency = report.latency.as_ref().or(report.connect_latency.as_ref());
            let found = latency.map(|latency| latency.p99);
            report.checks.push(Check {
                name: "max-p99",
                wanted: format!("≤ {}", format::microseconds(wanted)),
                found: found.map_or("nothing".to_owned(), format::microseconds),
                passed: found.is_some_and(|found| found <= wanted),
            });
        }
        if let Some(wanted) = self.min_rate {
            let found = report.messages.received_per_second;
            report.checks.push(Check {
                name: "min-rate",
                wanted: format!("≥ {}", format::per_second(wanted)),
                found: format::per_second(found),
                passed: found >= wanted,
            });
        }
        if let Some(wanted) = self.max_errors {
            let found = report.error_count();
            report.checks.push(Check {
                name: "max-errors",
                wanted: format!("≤ {wanted}"),
                found: found.to_string(),
                passed: found <= wanted,
            });
        }
    }
}

/// Where the results go beside the terminal.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Output {
    /// Write the results as JSON; - is the standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write them as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

impl Output {
    /// Says everything, at every place that was asked for.
    pub(crate) fn write(
        &self,
        reports: &[Report],
        comparisons: &[Comparison],
    ) -> Result<(), Failure> {
        let machine = machine::detect();
        let document = Document { reports, comparisons, machine: machine.as_ref() };
        if let Some(path) = &self.html {
            write(path, &html::page(&document))?;
        }
        let text = match &self.json {
            Some(path) if path.as_os_str() == "-" => json::to_string(&document),
            json => {
                if let Some(path) = json {
                    write(path, &json::to_string(&document))?;
                }
                let reports = reports.iter().map(table::report);
                reports
                    .chain(comparisons.iter().map(table::comparison))
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        };
        // Whoever does not read to the end does not want to know.
        _ = std::io::stdout().write_all(text.as_bytes());
        Ok(())
    }
}

/// Writes a file, or says which could not be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::Run(format!("cannot write {}: {error}", path.display())))
}

/// The arguments of `loadtest floor`.
#[derive(Debug, Args)]
struct Floor {
    /// Where it listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: std::net::SocketAddr,
    /// Write listen=ADDR to this file once it listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

/// Why there is no result, or none that one can be content with.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or a file is wrong.
    Usage(String),
    /// It could not be done.
    Run(String),
    /// It was done, and something that was asked for does not hold. The report says what.
    Condition,
}

impl Single {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<Report, Failure> {
        match self {
            Self::Echo(one) => one.run(),
            Self::Fanout(one) => one.run(),
            Self::Idle(one) => one.run(),
            Self::Storm(one) => one.run(),
            Self::Slow(one) => one.run(),
            Self::Churn(one) => one.run(),
            Self::Soak(one) => one.run(),
        }
    }

    pub(crate) fn output(&self) -> &Output {
        match self {
            Self::Echo(one) => &one.output,
            Self::Fanout(one) => &one.output,
            Self::Idle(one) => &one.output,
            Self::Storm(one) => &one.output,
            Self::Slow(one) => &one.output,
            Self::Churn(one) => &one.output,
            Self::Soak(one) => &one.output,
        }
    }

    fn run_and_tell(&self) -> Result<(), Failure> {
        let report = self.run()?;
        self.output().write(std::slice::from_ref(&report), &[])?;
        all_met(&[report])
    }
}

impl<S: Args + Scenario> One<S> {
    fn run(&self) -> Result<Report, Failure> {
        let place = self.at.place()?;
        let mut report = self.scenario.run(&place).map_err(Failure::from)?;
        self.conditions.check(&mut report);
        Ok(report)
    }
}

/// Whether all conditions are met.
pub(crate) fn all_met(reports: &[Report]) -> Result<(), Failure> {
    match reports.iter().any(|report| report.failed_checks().next().is_some()) {
        true => Err(Failure::Condition),
        false => Ok(()),
    }
}

impl From<crate::scenario::RunError> for Failure {
    fn from(error: crate::scenario::RunError) -> Self {
        match error {
            crate::scenario::RunError::Settings(text) => Self::Usage(text),
            error => Self::Run(error.to_string()),
        }
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Single(single) => single.run_and_tell(),
        Command::Run(run) => suite::run(&run),
        Command::Compare(compare) => compare::compare(&compare),
        Command::Floor(Floor { listen, port_file }) => {
            match floor::serve(listen, port_file.as_deref()) {
                Ok(never) => match never {},
                Err(error) => Err(Failure::Run(format!("the floor cannot serve: {error}"))),
            }
        }
        Command::Peers(peers) => peers.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Condition) => ExitCode::from(1),
        Err(Failure::Run(text)) => {
            eprintln!("loadtest: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(text)) => {
            eprintln!("loadtest: {text}");
            ExitCode::from(2)
        }
    }
}
