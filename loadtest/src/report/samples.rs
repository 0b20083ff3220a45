//! Results to try the printed forms with.

use std::collections::BTreeMap;

use super::model::{
    Check, Comparison, Connections, Contestant, Finding, Latency, Machine, Measure, Messages,
    Moment, Parameter, Ratio, Report, ServerUsage,
};

pub(super) fn machine() -> Machine {
    Machine {
        cpu: "Example CPU @ 2.0GHz".to_owned(),
        cores: 2,
        memory_bytes: 24 << 30,
        kernel: "Linux 6.1.0".to_owned(),
    }
}

/// A run in which everything was measured, and one condition of two is not met.
pub(super) fn echo() -> Report {
    let parameters = [
        ("connections", "1000"),
        ("size", "64B"),
        ("in-flight", "16"),
        ("warm-up", "2s"),
        ("duration", "10s"),
    ];
    Report {
        name: "echo-64".to_owned(),
        kind: "echo",
        target: "ws://127.0.0.1:9001/".to_owned(),
        parameters: parameters
            .map(|(name, value)| Parameter { name: name.to_owned(), value: value.to_owned() })
            .to_vec(),
        started_at: "2026-07-04T10:00:00Z".to_owned(),
        seconds: 10.0,
        connections: Connections { wanted: 1000, opened: 1000, open_at_end: 998 },
        messages: Messages {
            sent: 1_234_580,
            received: 1_234_567,
            received_bytes: 1_234_567 * 64,
            received_per_second: 123_456.7,
        },
        latency: Some(latency(1.0)),
        connect_latency: Some(Latency { count: 1000, ..latency(9.0) }),
        errors: BTreeMap::from([
            ("connection reset".to_owned(), 12),
            ("handshake timed out".to_owned(), 1),
        ]),
        server: Some(ServerUsage {
            pid: 4242,
            cpu_seconds: 9.3,
            cpu_per_message: Some(7.53),
            cores: 0.93,
            memory_before: 4 << 20,
            memory_at_end: 12 << 20,
            memory_max: 13 << 20,
        }),
        findings: vec![Finding {
            label: "memory of a connection".to_owned(),
            text: "696 bytes".to_owned(),
            value: 696.0,
            unit: "bytes",
        }],
        timeline: (-2..=40).map(moment).collect(),
        checks: vec![
            Check {
                name: "min-rate",
                wanted: "≥ 100,000/s".to_owned(),
                found: "123,457/s".to_owned(),
                passed: true,
            },
            Check {
                name: "max-p99",
                wanted: "≤ 500 µs".to_owned(),
                found: "710 µs".to_owned(),
                passed: false,
            },
        ],
    }
}

/// A run in which nothing could be measured.
pub(super) fn empty() -> Report {
    Report {
        name: String::new(),
        kind: "idle",
        target: String::new(),
        parameters: Vec::new(),
        started_at: String::new(),
        seconds: 0.0,
        connections: Connections::default(),
        messages: Messages::default(),
        latency: None,
        connect_latency: None,
        errors: BTreeMap::new(),
        server: None,
        findings: Vec::new(),
        timeline: Vec::new(),
        checks: Vec::new(),
    }
}

/// A smooth curve with a tail; `slowness` times as slow as the first.
pub(super) fn latency(slowness: f64) -> Latency {
    // Straight lines between these, over nines.
    let corners = [
        (0.0, 110.0),
        (0.301, 151.0),
        (1.0, 315.0),
        (2.0, 710.0),
        (3.0, 1480.0),
        (4.0, 5430.0),
        (6.0, 17_000.0),
    ];
    let at = |percentile: f64| {
        let nines: f64 = -(1.0 - percentile / 100.0).max(1e-6).log10();
        let next = corners
            .iter()
            .position(|corner| corner.0 >= nines - 1e-9)
            .unwrap_or(corners.len() - 1)
            .max(1);
        let ((from, low), (to, high)) = (corners[next - 1], corners[next]);
        low * f64::powf(high / low, (nines - from) / (to - from)) * slowness
    };
    let curve = (0..=60u32)
        .map(|step| {
            let percentile = 100.0 * (1.0 - 10f64.powf(-f64::from(step) / 10.0));
            (percentile, at(percentile))
        })
        .chain([(100.0, 19_000.0 * slowness)])
        .collect();
    Latency {
        count: 1_234_567,
        min: 110.0 * slowness,
        mean: 190.0 * slowness,
        p50: 151.0 * slowness,
        p90: 315.0 * slowness,
        p99: 710.0 * slowness,
        p99_9: 1480.0 * slowness,
        p99_99: 5430.0 * slowness,
        max: 19_000.0 * slowness,
        curve,
    }
}

/// One moment of a run with a start, a hiccup and a steady rest.
fn moment(step: i32) -> Moment {
    let at = f64::from(step) * 0.25;
    let wave = (f64::from(step) * 1.7).sin();
    let hiccup = if step == 22 { 0.4 } else { 1.0 };
    Moment {
        at,
        open: if step < 0 { 500 } else { 1000 },
        received_per_second: if step < 0 { 0.0 } else { (123_000.0 + 4_000.0 * wave) * hiccup },
        p50: (step >= 0).then_some(150.0 + 8.0 * wave),
        p99: (step >= 0).then_some((700.0 + 90.0 * wave) / hiccup.powi(3)),
        cores: Some(if step < 0 { 0.2 } else { (0.93 + 0.02 * wave) * hiccup }),
        memory: Some(if step < 0 {
            8 << 20
        } else {
            (12 << 20) + 4096 * u64::try_from(step).unwrap()
        }),
    }
}

/// A comparison in which one contestant failed.
pub(super) fn comparison() -> Comparison {
    let contestant = |name: &str, rounds: [f64; 5]| contestant(name, &rounds);
    Comparison {
        title: "echo 64 B, 16 in flight".to_owned(),
        kind: "echo",
        command: "loadtest compare echo --connections 100 --size 64B --in-flight 16 --rounds 5"
            .to_owned(),
        started_at: "2026-07-04T10:00:00Z".to_owned(),
        measures: vec![
            Measure {
                label: "server CPU a message".to_owned(),
                unit: "µs",
                contestants: vec![
                    contestant("floor", [7.21, 7.3, 7.18, 7.25, 7.4]),
                    contestant("wsgate", [7.5, 7.55, 7.48, 7.6, 7.9]),
                    contestant("uWebSockets", [8.9, 8.8, 9.6, 8.95, 8.9]),
                    contestant("tokio-tungstenite", [13.1, 13.4, 12.8, 13.0, 15.2]),
                    failed("ws (Node.js)", "connection refused: is it installed?"),
                    contestant("gorilla/websocket", [22.1, 22.7, 21.4, 21.9, 24.0]),
                ],
            },
            Measure {
                label: "memory of a connection".to_owned(),
                unit: "bytes",
                contestants: vec![
                    contestant("floor", [120.0, 121.0, 119.0, 120.0, 122.0]),
                    contestant("wsgate", [696.0, 700.0, 690.0, 695.0, 696.0]),
                    contestant("uWebSockets", [410.0, 412.0, 409.0, 410.0, 440.0]),
                    contestant("tokio-tungstenite", [9800.0, 9700.0, 9900.0, 9800.0, 9850.0]),
                    failed("ws (Node.js)", "connection refused: is it installed?"),
                    contestant(
                        "gorilla/websocket",
                        [22_000.0, 21_900.0, 22_800.0, 22_000.0, 22_100.0],
                    ),
                ],
            },
        ],
    }
}

/// A contestant; its ratios are those to a reference of 7.25 (the samples need no better one).
pub(super) fn contestant(name: &str, rounds: &[f64]) -> Contestant {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let reference = if sorted[0] > 100.0 { 120.0 } else { 7.25 };
    let (median, min, max) = (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]);
    let ratio = if name == "floor" {
        Ratio { median: 1.0, min: 1.0, max: 1.0 }
    } else {
        Ratio { median: median / reference, min: min / reference, max: max / reference }
    };
    Contestant {
        name: name.to_owned(),
        rounds: rounds.to_vec(),
        median,
        ratio: Some(ratio),
        failure: None,
    }
}

pub(super) fn failed(name: &str, reason: &str) -> Contestant {
    Contestant {
        name: name.to_owned(),
        rounds: Vec::new(),
        median: f64::NAN,
        ratio: None,
        failure: Some(reason.to_owned()),
    }
}

/// A name that tries to become part of the page.
pub(super) const HOSTILE: &str =
    "</title><script>alert('x' + \"y\")</script> & | `*_[a](b) \u{1b}[31m";

/// Everything that is made of a result is whole. With `LOADTEST_SAMPLES=folder` it is written there
/// too, since looks are for a person to judge: do so after a change.
#[test]
fn everything_that_is_made_of_a_result_is_whole_and_has_no_value_that_is_none() {
    use super::model::Document;
    use super::{chart, html, markdown, table};

    let folder = std::env::var_os("LOADTEST_SAMPLES").map(std::path::PathBuf::from);
    let write = |name: &str, text: String| {
        assert!(!text.is_empty() && !text.contains("NaN") && !text.contains("inf "), "{name}");
        if name.ends_with(".svg") {
            assert!(roxmltree::Document::parse(&text).is_ok(), "{name}");
        }
        if let Some(folder) = &folder {
            std::fs::write(folder.join(name), text).expect("the folder can be written");
        }
    };
    let (echo, comparison, machine) = (echo(), comparison(), machine());
    let passed = Report {
        name: "echo-64-again".to_owned(),
        errors: BTreeMap::new(),
        checks: echo.checks[..1].to_vec(),
        ..echo.clone()
    };
    let slow = latency(3.3);
    let other = latency(1.4);
    let near = Latency {
        max: 900.0,
        p50: 350.0,
        p90: 400.0,
        p99: 650.0,
        p99_9: 890.0,
        p99_99: 900.0,
        curve: vec![(0.0, 300.0), (50.0, 350.0), (90.0, 400.0), (99.0, 650.0), (100.0, 900.0)],
        count: 1000,
        ..latency(1.0)
    };
    write("bars.svg", chart::bars(&comparison.measures[0], &comparison.title));
    write("bars-log.svg", chart::bars(&comparison.measures[1], "10,000 idle connections"));
    write("percentiles.svg", chart::percentiles(&[("echo-64", &latency(1.0))]));
    write(
        "percentiles-several.svg",
        chart::percentiles(&[
            ("wsgate", &latency(1.0)),
            ("uWebSockets", &other),
            ("tokio-tungstenite", &slow),
        ]),
    );
    write("percentiles-linear.svg", chart::percentiles(&[("few", &near)]));
    write("timeline.svg", chart::timeline(&echo.timeline, "echo-64 over time"));
    write(
        "report.html",
        html::page(&Document {
            reports: std::slice::from_ref(&echo),
            comparisons: &[],
            machine: Some(&machine),
        }),
    );
    write(
        "all.html",
        html::page(&Document {
            reports: &[echo.clone(), passed],
            comparisons: std::slice::from_ref(&comparison),
            machine: Some(&machine),
        }),
    );
    write("report.txt", table::report(&echo));
    write("comparison.txt", table::comparison(&comparison));
    write("comparison.md", markdown::comparison(&comparison));
}
