//! How is a result sent on? As one HTML page that needs nothing else: no script, no font, no
//! picture from elsewhere. Who gets it understands what was measured, and whether it is good.
//!
//! - [`page`]: the whole page, for any number of reports and comparisons.
//! - `style.css`: how it looks; light and dark, on paper and on a phone.
//!
//! The page is also well-formed XML, so that a test can read it. All text of others goes through
//! [`escaped`]; the page forbids scripts besides.

use std::fmt::Write;

use super::format::{self, NONE, escaped};
use super::model::{Comparison, Document, Latency, Machine, Measure, Report};
use super::{chart, table};

/// The page of `document`.
#[must_use]
pub fn page(document: &Document) -> String {
    let title = title(document);
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<header>\n<h1>{}</h1>\n{}</header>\n<main>\n",
        escaped(&title),
        include_str!("style.css"),
        escaped(&title),
        began(document),
    );
    html.push_str(&verdict(document));
    if document.reports.len() + document.comparisons.len() > 1 {
        html.push_str(&overview(document));
    }
    for (index, comparison) in document.comparisons.iter().enumerate() {
        html.push_str(&comparison_section(comparison, index));
    }
    for (index, report) in document.reports.iter().enumerate() {
        html.push_str(&report_section(report, index));
    }
    html.push_str("</main>\n");
    html.push_str(&footer(document));
    html.push_str("</body>\n</html>\n");
    html
}

fn title(document: &Document) -> String {
    match (document.reports, document.comparisons) {
        ([report], []) => format!("Load test: {}", named(&report.name, report.kind)),
        ([], [comparison]) => format!("Comparison: {}", named(&comparison.title, comparison.kind)),
        ([], [_, ..]) => {
            format!("{} comparisons of servers under load", document.comparisons.len())
        }
        ([], []) => "Load test".to_owned(),
        (reports, []) => format!("{} load tests", reports.len()),
        _ => "Load tests and comparisons".to_owned(),
    }
}

/// A name, or what stands for one.
fn named<'a>(name: &'a str, kind: &'a str) -> &'a str {
    if name.trim().is_empty() { kind } else { name }
}

fn began(document: &Document) -> String {
    let starts = document.reports.iter().map(|report| &report.started_at);
    let starts = starts.chain(document.comparisons.iter().map(|comparison| &comparison.started_at));
    // RFC 3339 in UTC sorts by time.
    match starts.filter(|instant| !instant.is_empty()).min() {
        Some(first) => format!("<p class=\"dim\">began {}</p>\n", escaped(&format::instant(first))),
        None => String::new(),
    }
}

/// What a busy person reads.
fn verdict(document: &Document) -> String {
    let checks: usize = document.reports.iter().map(|report| report.checks.len()).sum();
    let failed: Vec<(&Report, &super::model::Check)> = document
        .reports
        .iter()
        .flat_map(|report| report.failed_checks().map(move |check| (report, check)))
        .collect();
    let mut html = String::new();
    if !failed.is_empty() {
        let verb = if failed.len() == 1 { "is" } else { "are" };
        let _ = writeln!(
            html,
            "<div class=\"verdict bad\"><strong>✗ {} of {} {verb} not met</strong>\n<ul>",
            failed.len(),
            counted(checks, "condition")
        );
        for (report, check) in failed {
            let of = if document.reports.len() > 1 {
                format!("{}: ", escaped(named(&report.name, report.kind)))
            } else {
                String::new()
            };
            let _ = writeln!(
                html,
                "<li>{of}<b>{}</b>: wanted {}, found <b>{}</b></li>",
                escaped(check.name),
                escaped(&check.wanted),
                escaped(&check.found)
            );
        }
        html.push_str("</ul></div>\n");
    } else if checks == 1 {
        html.push_str(
            "<div class=\"verdict good\"><strong>✓ The condition is met</strong></div>\n",
        );
    } else if checks > 1 {
        let _ = writeln!(
            html,
            "<div class=\"verdict good\"><strong>✓ All {checks} conditions are met</strong></div>"
        );
    } else if !document.reports.is_empty() {
        html.push_str("<div class=\"verdict\">No conditions were set: the numbers speak for themselves.</div>\n");
    }
    for trouble in troubles(document) {
        let _ = writeln!(html, "<div class=\"verdict warn\">⚠ {trouble}</div>");
    }
    html
}

/// What is no condition, but makes the numbers doubtful. As HTML.
fn troubles(document: &Document) -> Vec<String> {
    let mut troubles = Vec::new();
    for report in document.reports {
        let name = escaped(named(&report.name, report.kind));
        if report.error_count() > 0 {
            let kinds: Vec<String> = report
                .errors
                .iter()
                .map(|(kind, times)| format!("{} {}", format::count(*times), escaped(kind)))
                .collect();
            troubles.push(format!(
                "{name}: <b>{}</b> ({})",
                format::counted(report.error_count(), "error"),
                few(&kinds, ", ")
            ));
        }
        if report.connections.opened < report.connections.wanted {
            troubles.push(format!(
                "{name}: <b>only {} of {}</b> connections were opened",
                format::count(report.connections.opened),
                format::count(report.connections.wanted)
            ));
        }
    }
    for comparison in document.comparisons {
        let mut failures: Vec<String> = Vec::new();
        for contestant in comparison.measures.iter().flat_map(|measure| &measure.contestants) {
            if let Err(reason) = contestant.value() {
                let failure = format!("{} ({})", escaped(&contestant.name), escaped(reason));
                if !failures.contains(&failure) {
                    failures.push(failure);
                }
            }
        }
        if !failures.is_empty() {
            let title = escaped(named(&comparison.title, comparison.kind));
            troubles.push(format!("{title}: no value of {}", few(&failures, "; ")));
        }
    }
    troubles
}

/// Joins the first few; the rest stand in the tables.
fn few(items: &[String], separator: &str) -> String {
    const MOST: usize = 5;
    let mut text = items.iter().take(MOST).cloned().collect::<Vec<_>>().join(separator);
    if items.len() > MOST {
        let _ = write!(text, "{separator}and {} more", items.len() - MOST);
    }
    text
}

/// One row for each part of the page, with a link to it.
fn overview(document: &Document) -> String {
    let mut html = String::from("<nav class=\"card\" aria-label=\"Overview\">\n");
    if !document.comparisons.is_empty() {
        html.push_str("<h2>Comparisons</h2>\n<ul>\n");
        for (index, comparison) in document.comparisons.iter().enumerate() {
            let title = escaped(named(&comparison.title, comparison.kind));
            let _ = writeln!(html, "<li><a href=\"#comparison-{index}\">{title}</a></li>");
        }
        html.push_str("</ul>\n");
    }
    if !document.reports.is_empty() {
        html.push_str("<h2>Load tests</h2>\n");
        let header =
            ["test", "kind", "messages", "p50", "p99", "CPU a message", "errors", "conditions"];
        let rows = document.reports.iter().enumerate().map(|(index, report)| {
            let latency = report.latency.as_ref().filter(|latency| latency.count > 0);
            let of = |value: fn(&Latency) -> f64| {
                latency.map_or(NONE.to_owned(), |l| format::microseconds(value(l)))
            };
            let cpu = report.server.as_ref().and_then(|server| server.cpu_per_message);
            let conditions = match (report.checks.len(), report.failed_checks().count()) {
                (0, _) => NONE.to_owned(),
                (_, 0) => "<span class=\"good\">✓ met</span>".to_owned(),
                (_, failed) => format!("<span class=\"bad\">✗ {failed} not met</span>"),
            };
            let errors = match report.error_count() {
                0 => "0".to_owned(),
                errors => format!("<span class=\"bad\">{}</span>", format::count(errors)),
            };
            vec![
                format!(
                    "<a href=\"#report-{index}\">{}</a>",
                    escaped(named(&report.name, report.kind))
                ),
                escaped(report.kind),
                if report.messages.received == 0 {
                    NONE.to_owned()
                } else {
                    format::per_second(report.messages.received_per_second)
                },
                of(|latency| latency.p50),
                of(|latency| latency.p99),
                cpu.map_or(NONE.to_owned(), format::microseconds),
                errors,
                conditions,
            ]
        });
        html.push_str(&html_table(&header, &[2, 3, 4, 5, 6], rows));
    }
    html.push_str("</nav>\n");
    html
}

fn report_section(report: &Report, index: usize) -> String {
    let mut html = format!(
        "<section id=\"report-{index}\">\n<h2>{}</h2>\n",
        escaped(named(&report.name, report.kind))
    );
    let _ = writeln!(
        html,
        "<p class=\"dim\">{} against <code>{}</code>, measured for {}</p>",
        escaped(report.kind),
        escaped(&report.target),
        format::seconds(report.seconds)
    );
    if let Some(explanation) = explanation(report.kind) {
        let _ = writeln!(html, "<p>{explanation}</p>");
    }
    html.push_str(&parameters(report));
    html.push_str(&tiles(report));

    if !report.checks.is_empty() {
        html.push_str("<h3>Conditions</h3>\n");
        let rows = report.checks.iter().map(|check| {
            let verdict = if check.passed {
                "<span class=\"good\">✓ met</span>"
            } else {
                "<span class=\"bad\">✗ not met</span>"
            };
            vec![
                escaped(check.name),
                escaped(&check.wanted),
                escaped(&check.found),
                verdict.to_owned(),
            ]
        });
        html.push_str(&html_table(&["condition", "wanted", "found", ""], &[1, 2], rows));
    }
    if !report.errors.is_empty() {
        html.push_str("<h3>Errors</h3>\n");
        let rows = report.errors.iter().map(|(kind, times)| {
            vec![escaped(kind), format!("<span class=\"bad\">{}</span>", format::count(*times))]
        });
        html.push_str(&html_table(&["what went wrong", "how often"], &[1], rows));
    }

    if let Some(latency) = report.latency.as_ref().filter(|latency| latency.count > 0) {
        html.push_str("<h3>Latency</h3>\n");
        html.push_str(&figure(&chart::percentiles(&[(named(&report.name, report.kind), latency)])));
    }
    html.push_str(&latency_table(report));
    if !report.timeline.is_empty() {
        html.push_str("<h3>Over time</h3>\n");
        let title = format!("{} over time", named(&report.name, report.kind));
        html.push_str(&figure(&chart::timeline(&report.timeline, &title)));
    }

    html.push_str("<h3>All numbers</h3>\n");
    html.push_str(&pairs(
        table::facts(report).iter().map(|(label, value)| (label.trim_end(), value.as_str())),
    ));
    html.push_str("</section>\n");
    html
}

/// What this kind of scenario does, for one who did not run it.
fn explanation(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "echo" => {
            "Every connection keeps messages under way, and the server sends each back. The latency is the time \
             from when a message was to be sent until its echo was there."
        }
        "fanout" => {
            "Messages are published to channels, and the server delivers each to every subscriber of its channel. \
             The latency is the time from when a message was to be published until one subscriber had it."
        }
        "idle" => {
            "Many connections are opened and then left alone. What counts is what an open connection costs the \
             server in memory and processor time."
        }
        "storm" => {
            "All connections come at once, as after a restart of the server or of the network. What counts is how \
             soon everybody is served."
        }
        "slow" => {
            "Some clients read too slowly or not at all. What counts is that the others do not notice, and that the \
             server's memory stays within bounds."
        }
        "churn" => {
            "Connections are opened and closed all the time. What counts is what coming and going costs, and that \
             nothing is left behind."
        }
        _ => return None,
    })
}

/// What was asked for, in one run of text.
fn parameters(report: &Report) -> String {
    if report.parameters.is_empty() {
        return String::new();
    }
    let mut html = String::from("<ul class=\"parameters\" aria-label=\"Parameters\">\n");
    for parameter in &report.parameters {
        let _ = writeln!(
            html,
            "<li>{} <b>{}</b></li>",
            escaped(&parameter.name),
            escaped(&parameter.value)
        );
    }
    html.push_str("</ul>\n");
    html
}

/// The numbers that are asked for first.
fn tiles(report: &Report) -> String {
    let mut tiles: Vec<(&str, String, String)> = Vec::new();
    if report.messages.received > 0 {
        tiles.push((
            "messages received",
            format::per_second(report.messages.received_per_second),
            format!("{} in all", format::count(report.messages.received)),
        ));
    }
    if let Some(latency) = report.latency.as_ref().filter(|latency| latency.count > 0) {
        tiles.push((
            "median latency",
            format::microseconds(latency.p50),
            format!("mean {}", format::microseconds(latency.mean)),
        ));
        tiles.push((
            "99th percentile",
            format::microseconds(latency.p99),
            format!("p99.9 {}", format::microseconds(latency.p99_9)),
        ));
    }
    tiles.push((
        "connections",
        format::count(report.connections.opened),
        format!("of {} opened", format::count(report.connections.wanted)),
    ));
    if let Some(server) = &report.server {
        match server.cpu_per_message {
            Some(cpu) => tiles.push((
                "server CPU a message",
                format::microseconds(cpu),
                format::cores(server.cores),
            )),
            None => tiles.push((
                "server CPU",
                format::cores(server.cores),
                format!("{} in all", format::seconds(server.cpu_seconds)),
            )),
        }
        let (max, before) = (server.memory_max as f64, server.memory_before as f64);
        tiles.push((
            "server memory at most",
            format::bytes(max),
            format!("{} before", format::bytes(before)),
        ));
    }
    for finding in report.findings.iter().take(4) {
        tiles.push((&finding.label, finding.text.clone(), String::new()));
    }
    let errors = report.error_count();
    tiles.push((
        "errors",
        format::count(errors),
        if errors == 0 { "none".to_owned() } else { "see below".to_owned() },
    ));

    let mut html = String::from("<dl class=\"tiles\">\n");
    for (label, value, detail) in tiles {
        let class = if label == "errors" && errors > 0 { " class=\"bad\"" } else { "" };
        let _ = write!(html, "<div><dt>{}</dt><dd{class}>{}</dd>", escaped(label), escaped(&value));
        if !detail.is_empty() {
            let _ = write!(html, "<dd class=\"dim\">{}</dd>", escaped(&detail));
        }
        html.push_str("</div>\n");
    }
    html.push_str("</dl>\n");
    html
}

fn latency_table(report: &Report) -> String {
    let rows: Vec<(&str, &Latency)> =
        [("latency", report.latency.as_ref()), ("connecting", report.connect_latency.as_ref())]
            .into_iter()
            .filter_map(|(label, latency)| {
                Some((label, latency.filter(|latency| latency.count > 0)?))
            })
            .collect();
    let Some((_, first)) = rows.first() else { return String::new() };
    let names: Vec<&str> = table::points(first).iter().map(|(name, _)| *name).collect();
    let header: Vec<&str> = [""].into_iter().chain(names).chain(["mean", "count"]).collect();
    let numbers: Vec<usize> = (1..header.len()).collect();
    let rows = rows.into_iter().map(|(label, latency)| {
        let points = table::points(latency).map(|(_, value)| format::microseconds(value));
        let mut cells = vec![label.to_owned()];
        cells.extend(points);
        cells.extend([format::microseconds(latency.mean), format::count(latency.count)]);
        cells
    });
    html_table(&header, &numbers, rows)
}

fn comparison_section(comparison: &Comparison, index: usize) -> String {
    let title = named(&comparison.title, comparison.kind);
    let mut html = format!("<section id=\"comparison-{index}\">\n<h2>{}</h2>\n", escaped(title));
    html.push_str("<p>The same load on each server in turns, round after round");
    if let Some(explanation) = explanation(comparison.kind) {
        let _ = write!(html, ". {explanation}</p>\n<p>The value");
    } else {
        html.push_str(". The value");
    }
    html.push_str(
        " of a server is the median of its rounds, and the whisker goes from its smallest round to its largest. \
         The ratio to the reference is taken within a round, so what disturbs both does not count.</p>\n",
    );
    for measure in &comparison.measures {
        let _ = writeln!(html, "<h3>{}</h3>", escaped(&measure.label));
        html.push_str(&figure(&chart::bars(measure, title)));
        html.push_str(&measure_table(measure));
    }
    if !comparison.command.is_empty() {
        let _ = writeln!(
            html,
            "<p class=\"dim\">To repeat it:</p>\n<pre>{}</pre>",
            escaped(&comparison.command)
        );
    }
    html.push_str("</section>\n");
    html
}

fn measure_table(measure: &Measure) -> String {
    let ratio = measure
        .reference()
        .map_or("ratio".to_owned(), |reference| format!("to {}", reference.name));
    let rows = measure.contestants.iter().map(|contestant| match contestant.value() {
        Ok(median) => vec![
            escaped(&contestant.name),
            format::quantity(median, measure.unit),
            contestant.ratio.as_ref().map_or(NONE.to_owned(), format::ratio),
            table::rounds(&contestant.rounds, measure.unit),
        ],
        Err(reason) => vec![
            escaped(&contestant.name),
            NONE.to_owned(),
            NONE.to_owned(),
            format!("<span class=\"bad\">no value: {}</span>", escaped(reason)),
        ],
    });
    html_table(&["server", "median", &ratio, "rounds"], &[1], rows)
}

fn footer(document: &Document) -> String {
    let mut html = String::from("<footer>\n");
    if let Some(machine) = document.machine {
        let _ = writeln!(html, "<p><b>Measured on</b> {}</p>", escaped(&said(machine)));
    }
    html.push_str(
        "<h3>How to read this page</h3>\n<dl class=\"pairs\">\n\
         <div><dt>p99</dt><dd>99 of 100 were at most this slow; p99.9: 999 of 1,000</dd></div>\n\
         <div><dt>latency</dt><dd>counts from when something was to happen, not from when it could: a server that \
         stalls cannot hide the time in which nothing was sent</dd></div>\n\
         <div><dt>CPU a message</dt><dd>user and system time of all threads of the server, by the number of messages \
         that were received</dd></div>\n\
         <div><dt>memory</dt><dd>anonymous resident memory of the server: what it allocated, without program \
         files</dd></div>\n\
         <div><dt>KiB, MiB</dt><dd>1,024 bytes, 1,024 KiB</dd></div>\n\
         </dl>\n",
    );
    let _ =
        writeln!(html, "<p class=\"dim\">loadtest {}</p>\n</footer>", env!("CARGO_PKG_VERSION"));
    html
}

/// `Example CPU, 2 cores, 24 GiB of memory, Linux 6.1.0`.
fn said(machine: &Machine) -> String {
    let memory = format::bytes(machine.memory_bytes as f64);
    format!(
        "{}, {}, {memory} of memory, {}",
        machine.cpu,
        counted(machine.cores, "core"),
        machine.kernel
    )
}

fn counted(value: usize, singular: &str) -> String {
    format::counted(value as u64, singular)
}

/// A chart that may be moved sideways where the page is narrow.
fn figure(svg: &str) -> String {
    format!("<figure>\n{svg}</figure>\n")
}

/// Label and value, one below the other. Both are escaped here.
fn pairs<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut html = String::from("<dl class=\"pairs\">\n");
    for (label, value) in pairs {
        let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escaped(label), escaped(value));
    }
    html.push_str("</dl>\n");
    html
}

/// A table of cells that are HTML already; the header is text. The columns `numbers` are set to
/// the right.
fn html_table(
    header: &[&str],
    numbers: &[usize],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let class = |column: usize| if numbers.contains(&column) { " class=\"number\"" } else { "" };
    let mut html = String::from("<div class=\"wide\"><table>\n<thead><tr>");
    for (column, name) in header.iter().enumerate() {
        let _ = write!(html, "<th scope=\"col\"{}>{}</th>", class(column), escaped(name));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            if column == 0 {
                let _ = write!(html, "<th scope=\"row\">{cell}</th>");
            } else {
                let _ = write!(html, "<td{}>{cell}</td>", class(column));
            }
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table></div>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    /// Parses the page and returns all of its text.
    fn text(html: &str) -> String {
        let options =
            roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
        // HTML writes its doctype for the browser, XML wants the name of the root in it.
        let document = roxmltree::Document::parse_with_options(html, options)
            .unwrap_or_else(|error| panic!("{error}\n{html}"));
        for nonsense in ["NaN", "inf<", ">inf", "<script", "http://", "https://", "src=", "url("] {
            assert!(
                !html.replace("http://www.w3.org/2000/svg", "").contains(nonsense),
                "{nonsense} in {html}"
            );
        }
        let ids: Vec<&str> =
            document.descendants().filter_map(|node| node.attribute("id")).collect();
        for link in document.descendants().filter_map(|node| node.attribute("href")) {
            assert!(
                link.strip_prefix('#').is_some_and(|id| ids.contains(&id)),
                "{link} leads nowhere"
            );
        }
        let all =
            document.descendants().filter(roxmltree::Node::is_text).filter_map(|node| node.text());
        all.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn page_says_what_failed_before_anything_else() {
        let reports = [samples::echo()];
        let machine = samples::machine();
        let html = page(&Document { reports: &reports, comparisons: &[], machine: Some(&machine) });
        let said = text(&html);
        for expected in [
            "Load test: echo-64",
            "✗ 1 of 2 conditions is not met",
            "13 errors",
            "123,457/s",
            "Example CPU @ 2.0GHz, 2 cores, 24 GiB of memory, Linux 6.1.0",
            "in-flight",
            "696 bytes",
        ] {
            assert!(said.contains(expected), "{expected} in {said}");
        }
        assert!(html.find("not met") < html.find("123,457/s"));
        assert!(html.len() < 60_000, "{}", html.len());
    }

    #[test]
    fn page_of_several_has_links_to_each() {
        let mut passed = samples::echo();
        passed.checks.truncate(1);
        passed.errors.clear();
        let reports = [samples::echo(), passed, samples::empty()];
        let comparisons = [samples::comparison()];
        let html = page(&Document { reports: &reports, comparisons: &comparisons, machine: None });
        let said = text(&html);
        assert!(said.contains("Load tests and comparisons"));
        assert!(said.contains("no value: connection refused: is it installed?"));
        assert!(html.contains("href=\"#report-2\"") && html.contains("href=\"#comparison-0\""));
    }

    #[test]
    fn page_praises_only_when_there_was_something_to_meet() {
        let mut report = samples::echo();
        report.checks.truncate(1);
        assert!(
            text(&page(&Document { reports: &[report.clone()], ..Document::default() }))
                .contains("✓ The condition is met")
        );
        report.checks.clear();
        let said = text(&page(&Document { reports: &[report], ..Document::default() }));
        assert!(said.contains("No conditions were set") && !said.contains('✓'));
    }

    #[test]
    fn page_of_nothing_is_a_page() {
        text(&page(&Document::default()));
        let mut nothing = samples::empty();
        nothing.seconds = f64::NAN;
        nothing.messages.received_per_second = f64::INFINITY;
        nothing.connections.wanted = 3;
        nothing.latency = Some(Latency {
            count: 0,
            curve: Vec::new(),
            min: f64::INFINITY,
            ..samples::latency(1.0)
        });
        assert!(
            text(&page(&Document { reports: &[nothing], ..Document::default() }))
                .contains("only 0 of 3")
        );
    }

    #[test]
    fn names_of_others_stay_text() {
        let hostile = || samples::HOSTILE.to_owned();
        let mut report = samples::echo();
        report.name = hostile();
        report.target = hostile();
        report.started_at = hostile();
        report.parameters[0].name = hostile();
        report.parameters[0].value = hostile();
        report.errors.insert(hostile(), 1);
        report.findings[0].label = hostile();
        report.findings[0].text = hostile();
        report.checks[1].wanted = hostile();
        report.checks[1].found = hostile();
        let mut comparison = samples::comparison();
        comparison.title = hostile();
        comparison.command = hostile();
        comparison.started_at = hostile();
        for measure in &mut comparison.measures {
            measure.label = hostile();
            for contestant in &mut measure.contestants {
                contestant.name = hostile();
                contestant.failure = contestant.failure.take().map(|_| hostile());
            }
        }
        let machine = Machine { cpu: hostile(), kernel: hostile(), ..samples::machine() };
        let reports = [report.clone(), report];
        let said = text(&page(&Document {
            reports: &reports,
            comparisons: &[comparison],
            machine: Some(&machine),
        }));
        assert!(said.contains("<script>alert('x' + \"y\")</script>"));
    }
}
