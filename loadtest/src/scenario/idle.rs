//! Connections on which nothing happens but heartbeats.

use std::time::{Duration, Instant};

use crate::engine::plan::{Phase, Role};
use crate::report::model::{Parameter, Report};
use crate::scenario::arguments::{Course, Offer, Place};
use crate::scenario::run::{FIRST_CONNECTIONS, Run, RunError, finding};
use crate::scenario::{Measured, Scenario, parameter};

/// Memory that has not changed for so long is settled, and what takes longer than that is not waited
/// for.
const SETTLED: Duration = Duration::from_millis(500);
const MAX_SETTLING: Duration = Duration::from_secs(10);

/// The server's Pings are answered; nothing else is sent.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Idle {
    /// Clients
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// What they are connected to
    #[arg(long, value_name = "WHAT", default_value = "echo")]
    on: On,
    /// Channels, over which they spread evenly
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
    #[command(flatten)]
    pub(super) offer: Offer,
    #[command(flatten)]
    course: Course,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum On {
    Echo,
    Channel,
}

impl Measured for Idle {
    fn course(&self) -> &Course {
        &self.course
    }
}

impl Scenario for Idle {
    const KIND: &'static str = "idle";

    fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = vec![parameter("connections", self.connections)];
        match self.on {
            On::Echo => parameters.push(parameter("on", "echo")),
            On::Channel => {
                parameters.push(parameter("on", "channel"));
                parameters.push(parameter("channels", self.channels));
            }
        }
        parameters.extend(self.offer.parameters());
        parameters
    }

    fn run(&self, place: &Place) -> Result<Report, RunError> {
        let roles = (0..self.connections).map(|number| match self.on {
            On::Echo => Role::Idle,
            On::Channel => Role::Subscriber { channel: number % self.channels },
        });
        let roles: Vec<Role> = roles.collect();
        let wanted = roles.len();
        let mut plan = Run::plan(place, &self.course, roles);
        plan.compression = self.offer.compression;
        let mut run = Run::start(plan, place, Self::KIND, self.course.quiet)?;

        let first = FIRST_CONNECTIONS.min(wanted / 2);
        run.fleet.connect(first)?;
        run.check_connected(first.max(1).min(wanted))
            .or_else(|error| if first == 0 { Ok(()) } else { Err(error) })?;
        settle_memory(&mut run)?;
        run.count_memory_from_here();
        let before = run.usage();
        run.fleet.connect(wanted)?;
        run.check_connected(wanted)?;
        let opened = run.fleet.open().saturating_sub(first as u64);
        let handshakes = run.usage();
        settle_memory(&mut run)?;

        run.measure(Phase::Measuring, self.course.duration)?;
        let (mut report, collected) = run.report(self)?;
        if let Some(server) = &report.server
            && opened > 0
        {
            let each =
                server.memory_at_end.saturating_sub(server.memory_before) as f64 / opened as f64;
            let handshake =
                handshakes.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / opened as f64;
            let open = report.connections.open_at_end.max(1) as f64;
            let second = server.cpu_seconds * 1e6 / (report.seconds * open);
            report.findings.extend([
                finding("memory of a connection", each, "bytes", format!("{each:.0} bytes")),
                finding("CPU of a connection a second", second, "µs", format!("{second:.3} µs")),
                finding("CPU of a handshake", handshake, "µs", format!("{handshake:.1} µs")),
            ]);
        }
        let pings = collected.measured.counts.pings;
        report.findings.push(finding("Pings answered", pings as f64, "", pings.to_string()));
        Ok(report)
    }
}

/// Waits until the server's memory has stopped changing: an allocator gives pages back with a delay.
fn settle_memory(run: &mut Run) -> Result<(), RunError> {
    let end = Instant::now() + MAX_SETTLING;
    let mut memory = run.usage().memory;
    loop {
        run.fleet.stay(Phase::Connecting, SETTLED)?;
        let now = run.usage().memory;
        if now == memory || Instant::now() > end {
            return Ok(());
        }
        memory = now;
    }
}
