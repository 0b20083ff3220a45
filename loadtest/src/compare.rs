//! The same scenario against several servers, in turns: what is a ratio, and how far can it be
//! trusted?
//!
//! A machine may be busier in one minute than in the next, so every round goes over all servers, and
//! a ratio is taken within its round. What is told is the median over the rounds, with the smallest
//! and the largest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser};
use toml::Table;

use crate::cli::{Failure, Output, write};
use crate::client::deflate::Compression;
use crate::client::tls::Trust;
use crate::engine::plan::Api;
use crate::peers::{self, Peer, Running, ServerCompression, StartOptions};
use crate::report::model::{Comparison, Contestant, Measure, Ratio, Report};
use crate::report::{chart, markdown};
use crate::scenario::Any;
use crate::scenario::arguments::Place;
use crate::server_process::ServerProcess;
use crate::suite;
use crate::target::Target;

/// The arguments of `loadtest compare`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = false)]
pub(crate) struct Compare {
    #[command(flatten)]
    turns: Turns,
    /// A TOML file with [[comparison]] tables: kind is the scenario, the other keys are flags. Of the
    /// flags under Turns only --gateway counts beside it
    #[arg(long, value_name = "FILE", required = true)]
    file: Option<PathBuf>,
    /// Of the file only what has this in its title; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Exit status 1 where any server has failed, not only where all have
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: Output,
    /// Write a chart of every measure into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    #[command(subcommand)]
    scenario: Option<Any>,
}

/// Who takes part in a comparison, and how it goes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Turns")]
struct Turns {
    /// The servers, see loadtest peers list; wsgate:2 is the gateway with two shards, and wsgate+shared
    /// (or off, dedicated) compresses so and has clients that offer it, and wsgate+tls is the gateway over TLS
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "wsgate,floor")]
    with: Vec<Spec>,
    /// How often each has its turn
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The gateway's binary
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/release/wsgate",
        env = "GATEWAY_BINARY"
    )]
    gateway: PathBuf,
    /// One more argument of the gateway, such as --gateway-argument=--slow-consumer=drop-oldest; may be repeated
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    gateway_argument: Vec<String>,
    /// How often the servers ping, where they can [default: as seldom as they can]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    heartbeat: Option<Duration>,
    /// What comparisons have in common that share a table
    #[arg(long, value_name = "TEXT")]
    group: Option<String>,
    /// What this one is called within its group
    #[arg(long, value_name = "TEXT")]
    column: Option<String>,
}

/// The flags of [`Turns`], which come before the scenario's.
const TURNS: [&str; 7] =
    ["with", "rounds", "gateway", "gateway-argument", "heartbeat", "group", "column"];

/// A server with its number of shards, how it compresses where its clients offer it, and whether they
/// come over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spec {
    peer: Peer,
    shards: usize,
    compression: Option<ServerCompression>,
    is_tls: bool,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split('+');
        let text = words.next().unwrap_or_default();
        let (mut compression, mut is_tls) = (None, false);
        for word in words {
            match word {
                "tls" => is_tls = true,
                word => {
                    let parsed = word.parse().map_err(|error| format!("{error}, nor tls"));
                    compression = Some(parsed?);
                }
            }
        }
        let (name, shards) = text.split_once(':').unwrap_or((text, "1"));
        let shards = shards.parse().map_err(|_| format!("\"{shards}\" is no number of shards"))?;
        let peer: Peer = name.parse().map_err(|error: peers::UnknownPeer| error.to_string())?;
        if compression.is_some() && !peer.can_compress() {
            return Err(format!("{peer} is not set up to compress here"));
        }
        if is_tls && peer != Peer::Gateway {
            return Err(format!("{peer} is not set up for TLS here"));
        }
        Ok(Self { peer, shards, compression, is_tls })
    }
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.shards, self.peer) {
            (1, peer) => peer.fmt(f),
            (shards, peer @ Peer::Gateway) => write!(f, "{peer}, {shards} shards"),
            (shards, peer) => write!(f, "{peer}, {shards} threads"),
        }?;
        match self.compression {
            None => Ok(()),
            Some(ServerCompression::Off) => f.write_str(", compression off"),
            Some(compression) => write!(f, ", {} compression", compression.name()),
        }?;
        if self.is_tls { f.write_str(", TLS") } else { Ok(()) }
    }
}

/// A comparison of a file, as on the command line.
#[derive(Debug, Parser)]
#[command(name = "comparison", no_binary_name = true)]
struct InFile {
    #[command(flatten)]
    turns: Turns,
    #[command(subcommand)]
    scenario: Any,
}

/// One comparison that is to be made.
struct Planned {
    turns: Turns,
    scenario: Any,
    command: String,
}

impl Planned {
    fn title(&self) -> String {
        let Turns { group, column, .. } = &self.turns;
        let named = [group, column].into_iter().flatten().map(String::as_str);
        let title: Vec<&str> = named.collect();
        match (&self.scenario.course().name, &title[..]) {
            (Some(name), _) => name.clone(),
            (None, []) => self.scenario.kind().to_owned(),
            (None, title) => title.join(", "),
        }
    }
}

/// Makes all comparisons that were asked for.
pub(crate) fn compare(compare: &Compare) -> Result<(), Failure> {
    let planned = plan(compare)?;
    if planned.is_empty() {
        return Err(Failure::Usage("there is no comparison of that title".to_owned()));
    }
    let mut comparisons = Vec::new();
    for (index, planned_one) in planned.iter().enumerate() {
        let title = planned_one.title();
        eprintln!("{title} ({} of {})", index + 1, planned.len());
        comparisons.push(one(planned_one)?);
        // What is done is kept, whatever comes of the rest.
        write_files(compare, &planned, &comparisons)?;
    }
    compare.output.write(&[], &comparisons)?;
    let has_failed = |measure: &Measure| {
        let mut failed = measure.contestants.iter().map(|one| one.value().is_err());
        if compare.strict { failed.any(|failed| failed) } else { failed.all(|failed| failed) }
    };
    // A server that cannot take part at all leaves no measure behind.
    let failed = |one: &&Comparison| one.measures.is_empty() || one.measures.iter().any(has_failed);
    match comparisons.iter().find(failed) {
        Some(one) => {
            Err(Failure::Run(format!("not every server could be measured: \"{}\"", one.title)))
        }
        None => Ok(()),
    }
}

fn plan(compare: &Compare) -> Result<Vec<Planned>, Failure> {
    let Some(file) = &compare.file else {
        let scenario = compare.scenario.clone().ok_or_else(|| {
            Failure::Usage("say which scenario, or a file of them with --file".to_owned())
        })?;
        let words: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("loadtest {}", words.join(" "));
        return Ok(vec![Planned { turns: compare.turns.clone(), scenario, command }]);
    };
    if compare.scenario.is_some() {
        return Err(Failure::Usage("either a file or a scenario, not both".to_owned()));
    }
    let gateway = compare.turns.gateway.to_string_lossy().into_owned();
    let more = Table::from_iter([("gateway".to_owned(), gateway.into())]);
    let mut planned = Vec::new();
    for words in suite::scenarios_of(file, "comparison", &more, &TURNS)? {
        let parsed = InFile::try_parse_from(&words);
        let InFile { turns, scenario } =
            parsed.map_err(|error| suite::wrong(file, &words, &error))?;
        // Who reads it has a gateway of their own somewhere, and no use for headings.
        let skipped = ["--gateway=", "--group=", "--column="];
        let words =
            words.into_iter().filter(|word| !skipped.iter().any(|skip| word.starts_with(skip)));
        let words: Vec<String> = words.collect();
        let command = format!("loadtest compare {}", words.join(" "));
        let one = Planned { turns, scenario, command };
        if compare.only.is_empty() || compare.only.iter().any(|only| one.title().contains(only)) {
            planned.push(one);
        }
    }
    Ok(planned)
}

/// What the rounds of one measure gave: of each contestant, one value a round.
type Values = Vec<Vec<Option<f64>>>;

/// Lets all servers have their turns.
fn one(planned: &Planned) -> Result<Comparison, Failure> {
    let Planned { turns, scenario, command } = planned;
    let started_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    // A server that has held connections keeps some of their memory: an idle one starts anew.
    let starts_anew = scenario.kind() == "idle" || scenario.kind() == "churn";
    let mut servers: Vec<Option<Running>> = turns.with.iter().map(|_| None).collect();
    let mut failures: Vec<Option<String>> = vec![None; turns.with.len()];
    // In the order in which they were first seen.
    let mut measures: Vec<(String, &'static str)> = Vec::new();
    let mut values: BTreeMap<String, Values> = BTreeMap::new();
    for round in 0..turns.rounds as usize {
        for (index, spec) in turns.with.iter().enumerate() {
            if starts_anew {
                servers[index] = None;
            }
            match turn(*spec, turns, scenario, &mut servers[index]) {
                Ok(report) => {
                    for (label, unit, value) in measures_of(&report) {
                        if !measures.iter().any(|(known, _)| *known == label) {
                            measures.push((label.clone(), unit));
                        }
                        let rounds = values.entry(label).or_insert_with(|| {
                            vec![vec![None; turns.rounds as usize]; turns.with.len()]
                        });
                        rounds[index][round] = Some(value);
                    }
                }
                Err(reason) => {
                    eprintln!("  {spec}, round {}: {reason}", round + 1);
                    failures[index].get_or_insert(reason);
                    // What has gone wrong once may have left traces.
                    servers[index] = None;
                }
            }
        }
    }
    let reference = turns.with.iter().position(|spec| spec.peer == Peer::Floor).unwrap_or(0);
    let measures = measures.into_iter().map(|(label, unit)| {
        let rounds = &values[&label];
        let contestants = turns.with.iter().enumerate().map(|(index, spec)| {
            let own: Vec<f64> = rounds[index].iter().copied().flatten().collect();
            let pairs = rounds[index].iter().zip(&rounds[reference]);
            let ratios = pairs.filter_map(|(own, reference)| Some((*own)? / (*reference)?));
            Contestant {
                name: spec.to_string(),
                median: median(own.clone()).unwrap_or(f64::NAN),
                ratio: ratio(ratios.filter(|ratio| ratio.is_finite()).collect()),
                failure: match own.is_empty() {
                    true => {
                        Some(failures[index].clone().unwrap_or_else(|| "not measured".to_owned()))
                    }
                    false => None,
                },
                rounds: own,
            }
        });
        Measure { label, unit, contestants: contestants.collect() }
    });
    Ok(Comparison {
        title: planned.title(),
        kind: scenario.kind(),
        command: command.clone(),
        started_at,
        measures: measures.collect(),
    })
}

/// One server's turn.
fn turn(
    spec: Spec,
    turns: &Turns,
    scenario: &Any,
    server: &mut Option<Running>,
) -> Result<Report, String> {
    let can = match scenario.kind() {
        "fanout" | "slow" => spec.peer.can_fan_out(),
        _ => spec.peer.can_echo(),
    };
    if !can {
        return Err("it has no channels".to_owned());
    }
    let mut scenario = scenario.clone();
    if let Some(compression) = spec.compression {
        let offer = scenario.offer().ok_or("its clients offer no compression")?;
        offer.compression = match compression {
            ServerCompression::Off => Compression::Off,
            ServerCompression::Shared => Compression::Shared,
            ServerCompression::Dedicated => Compression::Dedicated,
        };
    }
    let server = match server {
        Some(server) => server,
        None => {
            let options = StartOptions {
                gateway: turns.gateway.clone(),
                shards: spec.shards,
                compression: spec.compression,
                is_tls: spec.is_tls,
                gateway_arguments: turns.gateway_argument.clone(),
                heartbeat: turns.heartbeat,
            };
            let running = spec.peer.start(&options).map_err(|error| error.to_string())?;
            server.insert(running)
        }
    };
    let report = scenario.run(&place(server)?).map_err(|error| error.to_string())?;
    // A server that loses messages has done less work than the others.
    match report.errors.iter().next() {
        Some((kind, count)) => Err(format!("{kind} ({count} times)")),
        None => Ok(report),
    }
}

fn place(server: &Running) -> Result<Place, String> {
    let trust = server.certificate.as_deref().map(Trust::Authorities);
    let scheme = if trust.is_some() { "wss" } else { "ws" };
    let target = Target::with_trust(&format!("{scheme}://{}", server.address), trust);
    let mut target = target.map_err(|error| error.to_string())?;
    target.dialect = server.dialect;
    server.echo_path.clone_into(&mut target.echo_path);
    server.channel_path.clone_into(&mut target.channel_path);
    let api = server.api.map(|address| Api { address, host: address.to_string(), key: None });
    let process = ServerProcess::new(server.pid).map_err(|error| error.to_string())?;
    Ok(Place { target, api, headers: Vec::new(), server: Some(process) })
}

/// What is compared of a report. Of all of it less is better.
fn measures_of(report: &Report) -> Vec<(String, &'static str, f64)> {
    let mut measures = Vec::new();
    let cpu = report.server.as_ref().and_then(|server| server.cpu_per_message);
    let each = match report.kind {
        "fanout" | "slow" => "server CPU a delivery",
        _ => "server CPU a message",
    };
    let is_loaded = matches!(report.kind, "echo" | "fanout" | "slow");
    measures.extend(cpu.filter(|_| is_loaded).map(|cpu| (each.to_owned(), "µs", cpu)));
    if is_loaded && let Some(latency) = &report.latency {
        measures.push(("p99 latency".to_owned(), "µs", latency.p99));
    }
    let compared = [
        "p99 of those who read",
        "memory of a connection",
        "CPU of a connection a second",
        "CPU of a handshake",
        "CPU of a connection come and gone",
        "until all were back",
        "bytes on the wire a message",
    ];
    let findings = report.findings.iter();
    let findings = findings.filter(|finding| compared.contains(&finding.label.as_str()));
    measures.extend(findings.map(|one| (one.label.clone(), one.unit, one.value)));
    measures
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => None,
        0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

fn ratio(ratios: Vec<f64>) -> Option<Ratio> {
    let min = ratios.iter().copied().reduce(f64::min)?;
    let max = ratios.iter().copied().reduce(f64::max)?;
    Some(Ratio { median: median(ratios)?, min, max })
}

/// Writes charts and Markdown of what has been compared until now.
fn write_files(
    compare: &Compare,
    planned: &[Planned],
    comparisons: &[Comparison],
) -> Result<(), Failure> {
    if let Some(directory) = &compare.svg {
        std::fs::create_dir_all(directory).map_err(|error| {
            Failure::Run(format!("cannot make {}: {error}", directory.display()))
        })?;
        for comparison in comparisons {
            for measure in &comparison.measures {
                let title = format!("{}: {}", comparison.title, measure.label);
                let file = directory.join(format!("{}.svg", file_name(&title)));
                write(&file, &chart::bars(measure, &title))?;
            }
        }
    }
    if let Some(file) = &compare.markdown {
        write(file, &tables(planned, comparisons))?;
    }
    Ok(())
}

/// The Markdown of all comparisons; those of one group share a table for each measure.
fn tables(planned: &[Planned], comparisons: &[Comparison]) -> String {
    let mut text = String::new();
    let mut rest: &[Planned] = planned;
    let mut done: &[Comparison] = comparisons;
    while let (Some(first), Some(comparison)) = (rest.first(), done.first()) {
        let group = &first.turns.group;
        let together = match group {
            Some(_) => rest.iter().take_while(|one| one.turns.group == *group).count(),
            None => 1,
        };
        let together = together.min(done.len());
        if let (Some(group), true) = (group, together > 1) {
            let columns = rest[..together].iter().zip(&done[..together]).map(|(planned, one)| {
                let title = planned.turns.column.clone().unwrap_or_else(|| one.title.clone());
                Comparison { title, ..one.clone() }
            });
            let columns: Vec<Comparison> = columns.collect();
            for measure in &comparison.measures {
                let title = format!("{group}: {}", measure.label);
                text += &markdown::matrix(&title, &columns, &measure.label);
                text.push('\n');
            }
        } else {
            text += &markdown::comparison(comparison);
            text.push('\n');
        }
        rest = &rest[together..];
        done = &done[together..];
    }
    text
}

/// A title as the name of a file.
fn file_name(title: &str) -> String {
    let words = title.to_lowercase();
    let words = words.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contestants_are_named_with_their_shards_and_compression() {
        let spec: Spec = "wsgate:2".parse().unwrap();
        let plain = Spec { peer: Peer::Gateway, shards: 2, compression: None, is_tls: false };
        assert_eq!(spec, plain);
        assert_eq!(spec.to_string(), "wsgate, 2 shards");
        let spec: Spec = "wsgate:2+shared".parse().unwrap();
        assert_eq!(spec.compression, Some(ServerCompression::Shared));
        assert_eq!(spec.to_string(), "wsgate, 2 shards, shared compression");
        let off = "wsgate+off".parse::<Spec>().unwrap().to_string();
        assert_eq!(off, "wsgate, compression off");
        assert!("wsgate+some".parse::<Spec>().is_err());
        assert!("wsgate+".parse::<Spec>().is_err());
        assert!("floor+shared".parse::<Spec>().is_err());
        assert_eq!("wsgate+tls".parse::<Spec>().unwrap().to_string(), "wsgate, TLS");
        let both = "wsgate+shared+tls".parse::<Spec>().unwrap().to_string();
        assert_eq!(both, "wsgate, shared compression, TLS");
        assert!("floor+tls".parse::<Spec>().is_err());
        assert_eq!("floor".parse::<Spec>().unwrap().to_string(), "floor");
        assert!("wsgate:many".parse::<Spec>().is_err());
        assert!("unknown".parse::<Spec>().is_err());
    }

    #[test]
    fn median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let ratio = ratio(vec![1.2, 0.9, 1.0]).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (1.0, 0.9, 1.2));
    }

    #[test]
    fn titles_become_file_names() {
        assert_eq!(file_name("Echo, 64 B: CPU/message"), "echo-64-b-cpu-message");
    }
}
