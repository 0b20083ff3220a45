//! A scrape, parsed as strictly as the text format of Prometheus allows
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::collections::{BTreeMap, BTreeSet};

/// Everything that one scrape tells.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) families: BTreeMap<String, Family>,
}

/// One metric with all its series.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) help: String,
    pub(crate) kind: String,
    /// In their order. A histogram has several for each series.
    pub(crate) samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Of the family, with a suffix where that is a histogram.
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Metrics {
    /// Takes `text` apart, and fails the test where it is not as the format wants it.
    pub(crate) fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has an end");
        let mut metrics = Self::default();
        let mut current: Option<(String, Family)> = None;
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                metrics.finish(current.take());
                let (name, help) = help.split_once(' ').expect(line);
                assert!(is_name(name) && !help.trim().is_empty(), "{line}");
                let (help, kind) = (help.to_owned(), String::new());
                current = Some((name.to_owned(), Family { help, kind, samples: Vec::new() }));
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, family) = current.as_mut().expect("HELP stands before TYPE");
                let (of, kind) = kind.split_once(' ').expect(line);
                assert!(of == name && family.kind.is_empty(), "HELP, then one TYPE: {line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                family.kind = kind.to_owned();
            } else if !line.is_empty() {
                let (name, family) = current.as_mut().expect("HELP stands before the samples");
                let sample = parse_sample(line);
                let suffix = sample.name.strip_prefix(name.as_str());
                let is_of_family = match family.kind.as_str() {
                    "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
                    "counter" | "gauge" => suffix == Some(""),
                    _ => panic!("TYPE stands before the samples: {line}"),
                };
                assert!(is_of_family, "{line} is not of {name}");
                family.samples.push(sample);
            }
        }
        metrics.finish(current);
        metrics
    }

    fn finish(&mut self, finished: Option<(String, Family)>) {
        let Some((name, family)) = finished else {
            return;
        };
        family.check(&name);
        let replaced = self.families.insert(name.clone(), family);
        assert!(replaced.is_none(), "{name} is there twice");
    }

    /// The sum of all samples called `name` that have at least these labels. Fails where there is
    /// none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.families.values().flat_map(|family| &family.samples);
        let mut found =
            samples.filter(|sample| sample.name == name && sample.has(labels)).peekable();
        assert!(found.peek().is_some(), "there is no {name} with {labels:?}");
        found.map(|sample| sample.value).sum()
    }

    /// All series by their name with their labels.
    pub(crate) fn series(&self) -> BTreeMap<String, f64> {
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples.map(|sample| (sample.series(), sample.value)).collect()
    }
}

impl Family {
    /// Demands what the format and the naming rules of Prometheus want of one family.
    fn check(&self, name: &str) {
        assert!(!self.kind.is_empty(), "{name} has no TYPE");
        assert!(!self.samples.is_empty(), "{name} has no sample");
        assert_eq!(name.ends_with("_total"), self.kind == "counter", "{name} is a {}", self.kind);
        let series: BTreeSet<_> = self.samples.iter().map(Sample::series).collect();
        assert_eq!(series.len(), self.samples.len(), "{name} has a series twice");
        if self.kind == "counter" {
            assert!(self.samples.iter().all(|sample| sample.value >= 0.0), "{name} is negative");
        }
        if self.kind == "histogram" {
            self.check_histogram(name);
        }
    }

    /// Demands of a histogram without labels that its buckets grow up to its count.
    fn check_histogram(&self, name: &str) {
        let buckets: Vec<_> = self.samples.iter().filter(|sample| sample.is("_bucket")).collect();
        let bounds: Vec<f64> = buckets.iter().map(|bucket| number(&bucket.labels["le"])).collect();
        assert!(bounds.is_sorted_by(|lower, upper| lower < upper), "{name}: {bounds:?}");
        assert!(buckets.is_sorted_by_key(|bucket| bucket.value), "{name} shrinks");
        let last = buckets.last().expect("a histogram has buckets");
        let rest: Vec<_> = self.samples.iter().filter(|sample| !sample.is("_bucket")).collect();
        let [sum, count] = rest[..] else {
            panic!("{name} has one sum and one count");
        };
        assert!(sum.is("_sum") && count.is("_count"), "{name}");
        assert_eq!((last.labels["le"].as_str(), last.value), ("+Inf", count.value), "{name}");
    }
}

impl Sample {
    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.get(*name).is_some_and(|own| own == value))
    }

    fn is(&self, suffix: &str) -> bool {
        self.name.ends_with(suffix)
    }

    fn series(&self) -> String {
        let labels: Vec<_> =
            self.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        if labels.is_empty() {
            self.name.clone()
        } else {
            format!("{}{{{}}}", self.name, labels.join(","))
        }
    }
}

/// `name{label="value",…} number`, without a time.
fn parse_sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let (name, labels) = match series.split_once('{') {
        None => (series, BTreeMap::new()),
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').expect(line))),
    };
    assert!(is_name(name), "{line}");
    Sample { name: name.to_owned(), labels, value: number(value) }
}

/// Labels whose values need no escape: ours are a closed set of plain words.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').map(|pair| {
        let (name, value) = pair.split_once('=').expect(text);
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = value.expect(text);
        assert!(is_name(name) && !value.contains(['"', '\\', '\n']), "{text}");
        (name.to_owned(), value.to_owned())
    });
    let pairs: Vec<_> = pairs.collect();
    let labels: BTreeMap<_, _> = pairs.iter().cloned().collect();
    assert_eq!(labels.len(), pairs.len(), "a label is there twice: {text}");
    labels
}

fn is_name(name: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    name.starts_with(is_letter)
        && name.chars().all(|letter| is_letter(letter) || letter.is_ascii_digit())
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        _ => text.parse().unwrap_or_else(|_| panic!("{text} is not a number")),
    }
}
