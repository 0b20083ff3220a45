use super::*;
use crate::report::model::{Latency, Moment};
use crate::report::samples;

/// Parses the chart and returns all of its texts, one a line.
fn texts(svg: &str) -> String {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|error| panic!("{error}\n{svg}"));
    let root = document.root_element();
    assert_eq!(root.attribute("role"), Some("img"));
    assert!(root.attribute("aria-label").is_some_and(|label| !label.is_empty()));
    for nonsense in ["NaN", "inf", "href", "<script", "url("] {
        assert!(!svg.contains(nonsense), "{nonsense} in {svg}");
    }
    let all =
        root.descendants().filter(|node| node.has_tag_name("text") || node.has_tag_name("title"));
    all.filter_map(|node| node.text()).collect::<Vec<_>>().join("\n")
}

#[test]
fn bars_say_every_value_and_why_one_is_missing() {
    let comparison = samples::comparison();
    let said = texts(&bars(&comparison.measures[0], "CPU a message"));
    for expected in [
        "7.55 µs",
        "× 1.04",
        "no value: connection refused",
        "median of 5 rounds",
        "less is better",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert!(!said.contains("logarithmic"));
    assert!(texts(&bars(&comparison.measures[1], "memory")).contains("logarithmic"));
}

#[test]
fn bars_of_nobody_and_of_failures_only_are_drawn() {
    let mut measure = samples::comparison().measures.remove(0);
    measure.contestants = vec![samples::failed("ws", "it crashed")];
    assert!(texts(&bars(&measure, "CPU")).contains("it crashed"));
    measure.contestants.clear();
    assert!(texts(&bars(&measure, "CPU")).contains("nobody took part"));
}

#[test]
fn bars_of_strange_values_have_no_nonsense() {
    let mut measure = samples::comparison().measures.remove(0);
    measure.contestants = vec![
        samples::contestant("zero", &[0.0, 0.0]),
        samples::contestant("below", &[-5.0, 3.0, -7.0]),
        samples::contestant("none", &[f64::NAN]),
        samples::contestant("endless", &[1.0, f64::INFINITY, f64::INFINITY]),
    ];
    let said = texts(&bars(&measure, "CPU"));
    assert!(said.contains("−5 µs"), "{said}");
    assert_eq!(said.matches("no value: its value is no number").count(), 2, "{said}");
    measure.contestants.truncate(1);
    assert!(texts(&bars(&measure, "CPU")).contains("0 µs"));
}

#[test]
fn percentiles_alone_have_their_values_written_on() {
    let latency = samples::latency(1.0);
    let said = texts(&percentiles(&[("echo", &latency)]));
    for expected in ["151 µs", "1.48 ms", "99.99 %", "latency (logarithmic)"] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
}

#[test]
fn percentiles_of_several_have_a_legend() {
    let latencies: Vec<Latency> = (1..=8).map(|n| samples::latency(f64::from(n))).collect();
    let names: Vec<String> = (1..=8).map(|n| format!("server number {n}")).collect();
    let series: Vec<(&str, &Latency)> = names.iter().map(String::as_str).zip(&latencies).collect();
    let said = texts(&percentiles(&series));
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
}

#[test]
fn percentiles_of_nothing_are_drawn() {
    assert!(texts(&percentiles(&[])).contains("no latency was measured"));
    let mut nothing = samples::latency(1.0);
    nothing.count = 0;
    nothing.curve.clear();
    assert!(texts(&percentiles(&[("x", &nothing)])).contains("no latency was measured"));
    nothing.count = 1;
    nothing.max = f64::INFINITY;
    texts(&percentiles(&[("x", &nothing)]));
    let strange = Latency {
        count: 5,
        curve: vec![(f64::NAN, 1.0), (50.0, f64::NAN), (50.0, 0.0)],
        ..nothing
    };
    texts(&percentiles(&[("x", &strange), ("y", &strange)]));
}

#[test]
fn timeline_has_a_panel_for_all_that_was_measured() {
    let said = texts(&timeline(&samples::echo().timeline, "echo over time"));
    for expected in [
        "messages received",
        "latency",
        "open connections",
        "cores of the server",
        "memory of the server",
        "shaded: connecting",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
}

#[test]
fn timeline_of_little_or_nothing_is_drawn() {
    assert!(texts(&timeline(&[], "empty")).contains("nothing was measured"));
    let alone = Moment {
        at: 0.0,
        open: 0,
        received_per_second: 0.0,
        p50: None,
        p99: None,
        cores: None,
        memory: None,
    };
    assert!(texts(&timeline(std::slice::from_ref(&alone), "alone")).contains("open connections"));
    let strange = Moment {
        received_per_second: f64::NAN,
        p50: Some(f64::INFINITY),
        p99: Some(f64::NAN),
        cores: Some(f64::NAN),
        memory: Some(u64::MAX),
        ..alone.clone()
    };
    texts(&timeline(
        &[alone.clone(), strange.clone(), Moment { at: 1.0, ..strange.clone() }],
        "strange",
    ));
    texts(&timeline(&[Moment { at: f64::NAN, ..strange }, alone], "strange"));
}

#[test]
fn timeline_of_a_long_run_stays_small() {
    let moments: Vec<Moment> = (0..100_000u32)
        .map(|n| Moment {
            at: f64::from(n),
            p99: Some(if n == 50_000 { 9e6 } else { 100.0 }),
            ..samples::echo().timeline[20].clone()
        })
        .collect();
    let svg = timeline(&moments, "a day");
    assert!(svg.len() < 100_000, "{}", svg.len());
    assert!(texts(&svg).contains("worst p99 9 s"));
}

#[test]
fn names_of_others_stay_text() {
    let mut measure = samples::comparison().measures.remove(0);
    measure.label = samples::HOSTILE.to_owned();
    for contestant in &mut measure.contestants {
        contestant.name = samples::HOSTILE.to_owned();
        contestant.failure = contestant.failure.take().map(|_| samples::HOSTILE.to_owned());
    }
    texts(&bars(&measure, samples::HOSTILE));
    texts(&percentiles(&[
        (samples::HOSTILE, &samples::latency(1.0)),
        (samples::HOSTILE, &samples::latency(2.0)),
    ]));
    texts(&timeline(&samples::echo().timeline, samples::HOSTILE));
}
