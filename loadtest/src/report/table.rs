//! How is a result said on a terminal? As plain text in aligned columns, without colours.
//!
//! - [`report`]: one run. What went wrong stands last, where the eye is when the program ends.
//! - [`comparison`]: several servers, one row each.

use std::fmt::Write;

use super::format::{self, NONE, plain};
use super::model::{Comparison, Latency, Measure, Report, ServerUsage};

/// One run, for a terminal; ends with a newline.
#[must_use]
pub fn report(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |indent: &str, content: &str| {
        let _ = writeln!(text, "{}", format!("{indent}{content}").trim_end());
    };

    line(
        "",
        &format!("{}  ({} against {})", plain(&report.name), report.kind, plain(&report.target)),
    );
    let began = match report.started_at.as_str() {
        "" => String::new(),
        instant => format!(" from {}", plain(&format::instant(instant))),
    };
    line("  ", &format!("measured {}{began}", format::seconds(report.seconds)));
    for row in wrapped(&parameters(report), 96) {
        line("  ", &row);
    }
    line("", "");

    for (label, value) in facts(report) {
        line("  ", &format!("{label:<LABEL_WIDTH$}{value}"));
    }

    let rows: Vec<(&str, &Latency)> =
        [("latency", report.latency.as_ref()), ("connecting", report.connect_latency.as_ref())]
            .into_iter()
            .filter_map(|(label, latency)| Some((label, latency?)))
            .collect();
    if !rows.is_empty() {
        line("", "");
        for row in latencies(&rows).lines() {
            line("  ", row);
        }
    }

    line("", "");
    if report.errors.is_empty() {
        line("  ", "no errors");
    } else {
        line("  ", &format!("{}:", format::counted(report.error_count(), "error").to_uppercase()));
        let mut grid = Grid::new(&[Align::Right, Align::Left]);
        for (kind, &times) in &report.errors {
            grid.row([format::count(times), plain(kind)]);
        }
        for row in grid.lines() {
            line("    ", &row);
        }
    }
    let missing = report.connections.wanted.saturating_sub(report.connections.opened);
    if missing > 0 {
        line(
            "  ",
            &format!(
                "MISSING {} of {} were never opened",
                format::count(missing),
                format::counted(report.connections.wanted, "connection")
            ),
        );
    }
    for check in &report.checks {
        let verdict = if check.passed { "ok    " } else { "FAILED" };
        let Check { name, wanted, found } = Check::of(check);
        line("  ", &format!("{verdict} {name}: wanted {wanted}, found {found}"));
    }
    text
}

/// Several servers, for a terminal; ends with a newline.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", plain(&comparison.title));
    if comparison.started_at.is_empty() {
        let _ = writeln!(text, "  {}", plain(&comparison.command));
    } else {
        let began = plain(&format::instant(&comparison.started_at));
        let _ = writeln!(text, "  {} (began {began})", plain(&comparison.command));
    }
    for measure in &comparison.measures {
        let _ = write!(text, "\n{}", self::measure(measure));
    }
    text
}

const LABEL_WIDTH: usize = 16;

/// The text fields of a check, safe for a terminal.
struct Check {
    name: String,
    wanted: String,
    found: String,
}

impl Check {
    fn of(check: &super::model::Check) -> Self {
        Self { name: plain(check.name), wanted: plain(&check.wanted), found: plain(&check.found) }
    }
}

fn parameters(report: &Report) -> Vec<String> {
    report
        .parameters
        .iter()
        .map(|parameter| {
            format!("{} {}", plain(&parameter.name), plain(&parameter.value)).trim_end().to_owned()
        })
        .collect()
}

/// What a run did, as label and value.
pub(super) fn facts(report: &Report) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut fact = |label: &str, value: String| facts.push((label.to_owned(), value));

    let connections = &report.connections;
    fact(
        "connections",
        format!(
            "{} of {} opened, {} open at the end",
            format::count(connections.opened),
            format::count(connections.wanted),
            format::count(connections.open_at_end)
        ),
    );
    let messages = &report.messages;
    if messages.sent > 0 || messages.received > 0 {
        let received = if messages.received == 0 {
            "0 messages".to_owned()
        } else {
            let received_bytes = messages.received_bytes as f64;
            let rate = if report.seconds > 0.0 {
                format!(" ({}/s)", format::bytes(received_bytes / report.seconds))
            } else {
                String::new()
            };
            format!(
                "{}, {}, {}{rate}",
                format::counted(messages.received, "message"),
                format::per_second(messages.received_per_second),
                format::bytes(received_bytes)
            )
        };
        fact("received", received);
        fact("sent", format::counted(messages.sent, "message"));
    }
    if let Some(server) = &report.server {
        fact("server CPU", cpu(server));
        fact("server memory", memory(server));
    }
    for finding in &report.findings {
        fact(&plain(&finding.label), plain(&finding.text));
    }

    let widest = facts
        .iter()
        .map(|(label, _)| label.chars().count())
        .max()
        .unwrap_or(0)
        .max(LABEL_WIDTH - 2);
    for (label, _) in &mut facts {
        let missing = (widest + 2).saturating_sub(label.chars().count());
        label.push_str(&" ".repeat(missing));
    }
    facts
}

/// `7.5 µs a message, 0.93 cores, 9.3 s in all`.
pub(super) fn cpu(server: &ServerUsage) -> String {
    let a_message = match server.cpu_per_message {
        Some(microseconds) if microseconds.is_finite() => {
            format!("{} a message, ", format::microseconds(microseconds))
        }
        _ => String::new(),
    };
    format!(
        "{a_message}{}, {} in all",
        format::cores(server.cores),
        format::seconds(server.cpu_seconds)
    )
}

/// `4 MiB before, 12 MiB at the end, 13 MiB at most`.
pub(super) fn memory(server: &ServerUsage) -> String {
    format!(
        "{} before, {} at the end, {} at most",
        format::bytes(server.memory_before as f64),
        format::bytes(server.memory_at_end as f64),
        format::bytes(server.memory_max as f64)
    )
}

/// The named points of a distribution, as label and microseconds, in ascending order. The mean
/// stands apart: it is no percentile.
pub(super) fn points(latency: &Latency) -> [(&'static str, f64); 7] {
    [
        ("min", latency.min),
        ("p50", latency.p50),
        ("p90", latency.p90),
        ("p99", latency.p99),
        ("p99.9", latency.p99_9),
        ("p99.99", latency.p99_99),
        ("max", latency.max),
    ]
}

/// One row for each distribution.
fn latencies(rows: &[(&str, &Latency)]) -> String {
    let mut grid = Grid::new(&[Align::Left]);
    let mut header = vec![String::new()];
    for (index, (label, latency)) in rows.iter().enumerate() {
        let mut cells = vec![(*label).to_owned()];
        for (name, value) in points(latency) {
            if index == 0 {
                header.push(name.to_owned());
            }
            // A maximum of nothing is no maximum.
            cells.push(if latency.count == 0 {
                NONE.to_owned()
            } else {
                format::microseconds(value)
            });
        }
        cells.push(if latency.count == 0 {
            NONE.to_owned()
        } else {
            format::microseconds(latency.mean)
        });
        cells.push(format::count(latency.count));
        if index == 0 {
            header.extend(["mean".to_owned(), "count".to_owned()]);
            grid.row(header.drain(..));
        }
        grid.row(cells);
    }
    grid.to_string()
}

/// One quantity of all contestants.
fn measure(measure: &Measure) -> String {
    let mut grid = Grid::new(&[Align::Left, Align::Right, Align::Left, Align::Left]);
    let reference = measure
        .reference()
        .map_or(String::new(), |reference| format!("to {}", plain(&reference.name)));
    grid.row([String::new(), "median".to_owned(), reference, "rounds".to_owned()]);
    let mut failures = String::new();
    for contestant in &measure.contestants {
        let name = plain(&contestant.name);
        match contestant.value() {
            Ok(median) => {
                let ratio = contestant.ratio.as_ref().map_or(NONE.to_owned(), format::ratio);
                grid.row([
                    name,
                    format::quantity(median, measure.unit),
                    ratio,
                    rounds(&contestant.rounds, measure.unit),
                ]);
            }
            Err(reason) => {
                grid.row([name.clone(), NONE.to_owned(), NONE.to_owned(), String::new()]);
                let _ = writeln!(failures, "  FAILED {name}: {}", plain(reason));
            }
        }
    }
    let mut text = format!("  {}\n", plain(&measure.label));
    for row in grid.lines() {
        let _ = writeln!(text, "    {row}");
    }
    text + &failures
}

/// The values of the rounds in their order, for as many as fit on a line.
pub(super) fn rounds(rounds: &[f64], unit: &str) -> String {
    const MOST: usize = 9;
    let mut said: Vec<String> =
        rounds.iter().take(MOST).map(|&value| format::quantity(value, unit)).collect();
    if rounds.len() > MOST {
        said.push(format!("and {} more", rounds.len() - MOST));
    }
    said.join(", ")
}

/// Joins `items` with commas to lines of at most `width` characters, where that is possible.
fn wrapped(items: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let piece = if index + 1 < items.len() { format!("{item},") } else { item.clone() };
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + piece.chars().count() <= width => {
                line.push(' ');
                line.push_str(&piece);
            }
            _ => lines.push(piece),
        }
    }
    lines
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// Rows of cells that become columns of equal width.
struct Grid {
    /// Of the first columns; those behind them are like [`Align::Right`].
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    fn new(aligns: &[Align]) -> Self {
        Self { aligns: aligns.to_vec(), rows: Vec::new() }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(column, cell)| {
                    match self.aligns.get(column).copied().unwrap_or(Align::Right) {
                        Align::Left => format!("{cell:<0$}", widths[column]),
                        Align::Right => format!("{cell:>0$}", widths[column]),
                    }
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn report_reads_like_this() {
        let expected = "\
echo-64  (echo against ws://127.0.0.1:9001/)
  measured 10 s from 2026-07-04 10:00:00 UTC
  connections 1000, size 64B, in-flight 16, warm-up 2s, duration 10s

  connections             1,000 of 1,000 opened, 998 open at the end
  received                1,234,567 messages, 123,457/s, 75.4 MiB (7.54 MiB/s)
  sent                    1,234,580 messages
  server CPU              7.53 µs a message, 0.93 cores, 9.3 s in all
  server memory           4 MiB before, 12 MiB at the end, 13 MiB at most
  memory of a connection  696 bytes

                 min      p50      p90      p99    p99.9   p99.99     max     mean      count
  latency     110 µs   151 µs   315 µs   710 µs  1.48 ms  5.43 ms   19 ms   190 µs  1,234,567
  connecting  990 µs  1.36 ms  2.83 ms  6.39 ms  13.3 ms  48.9 ms  171 ms  1.71 ms      1,000

  13 ERRORS:
    12  connection reset
     1  handshake timed out
  ok     min-rate: wanted ≥ 100,000/s, found 123,457/s
  FAILED max-p99: wanted ≤ 500 µs, found 710 µs
";
        assert_eq!(report(&samples::echo()), expected);
    }

    #[test]
    fn comparison_reads_like_this() {
        let text = comparison(&samples::comparison());
        let expected = "\
echo 64 B, 16 in flight
  loadtest compare echo --connections 100 --size 64B --in-flight 16 --rounds 5 (began 2026-07-04 10:00:00 UTC)

  server CPU a message
                        median  to floor          rounds
    floor              7.25 µs  1.00              7.21 µs, 7.3 µs, 7.18 µs, 7.25 µs, 7.4 µs
    wsgate             7.55 µs  1.04 (1.03–1.09)  7.5 µs, 7.55 µs, 7.48 µs, 7.6 µs, 7.9 µs
    uWebSockets         8.9 µs  1.23 (1.21–1.32)  8.9 µs, 8.8 µs, 9.6 µs, 8.95 µs, 8.9 µs
    tokio-tungstenite  13.1 µs  1.81 (1.77–2.10)  13.1 µs, 13.4 µs, 12.8 µs, 13 µs, 15.2 µs
    ws (Node.js)             –  –
    gorilla/websocket  22.1 µs  3.05 (2.95–3.31)  22.1 µs, 22.7 µs, 21.4 µs, 21.9 µs, 24 µs
  FAILED ws (Node.js): connection refused: is it installed?

  memory of a connection
";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn report_of_nothing_has_no_nonsense() {
        let mut nothing = samples::empty();
        nothing.latency = Some(crate::report::model::Latency {
            count: 0,
            min: f64::INFINITY,
            mean: f64::NAN,
            max: f64::NEG_INFINITY,
            ..samples::latency(1.0)
        });
        nothing.seconds = f64::NAN;
        let text = report(&nothing);
        for nonsense in ["NaN", "inf"] {
            assert!(!text.contains(nonsense), "{text}");
        }
        assert!(text.contains("no errors"));
    }

    #[test]
    fn connections_that_never_opened_are_impossible_to_overlook() {
        let mut few = samples::empty();
        few.connections.wanted = 1000;
        few.connections.opened = 990;
        assert!(report(&few).contains("  MISSING 10 of 1,000 connections were never opened\n"));
    }

    #[test]
    fn names_of_others_cannot_steer_the_terminal() {
        let mut hostile = samples::echo();
        hostile.name = samples::HOSTILE.to_owned();
        hostile.errors.insert(samples::HOSTILE.to_owned(), 1);
        assert!(!report(&hostile).contains('\u{1b}'));
    }

    #[test]
    fn contestant_without_a_value_is_named_with_its_reason() {
        let mut nothing = samples::comparison();
        for measure in &mut nothing.measures {
            measure.contestants = vec![samples::failed("x", "it crashed")];
        }
        assert!(comparison(&nothing).contains("FAILED x: it crashed"));
        for measure in &mut nothing.measures {
            measure.contestants.clear();
        }
        assert!(!comparison(&nothing).is_empty());
    }

    #[test]
    fn long_parameters_go_on_in_the_next_line() {
        let items: Vec<String> = ["aaaa", "bbbb", "cccc"].map(str::to_owned).to_vec();
        assert_eq!(wrapped(&items, 11), ["aaaa, bbbb,", "cccc"]);
        assert_eq!(wrapped(&items, 1), ["aaaa,", "bbbb,", "cccc"]);
        assert!(wrapped(&[], 80).is_empty());
    }
}
