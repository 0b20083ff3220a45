//! How is a result said to a program? As one JSON object.
//!
//! ```json
//! {
//!   "loadtest": "0.1.0",
//!   "machine": { "cpu": "…", "cores": 2, "memory_bytes": 25769803776, "kernel": "Linux 6.1.0" },
//!   "reports": [ { "name": "echo", "kind": "echo", … } ],
//!   "comparisons": [ { "title": "echo 64 B", "measures": [ … ], … } ]
//! }
//! ```
//!
//! - `loadtest` is the version of this program. Fields may be added in any version; none is
//!   renamed or removed, nor changes its unit, without a new first or second number.
//! - `machine`, `reports` and `comparisons` are left out where there is nothing to say.
//! - An entry of `reports` is a [`Report`], one of `comparisons` a [`Comparison`], with the field
//!   names and units of the structs: latencies in microseconds, sizes in bytes, times in seconds.
//! - A value that does not exist, or is no number, is `null`.

use serde::Serialize;

use super::model::{Comparison, Document, Machine, Report};

/// Says everything in one JSON object, indented, with a newline at the end.
#[must_use]
pub fn to_string(document: &Document) -> String {
    let object = Object {
        loadtest: env!("CARGO_PKG_VERSION"),
        machine: document.machine,
        reports: document.reports,
        comparisons: document.comparisons,
    };
    let mut text = serde_json::to_string_pretty(&object)
        .expect("plain structs with text keys always have a JSON form");
    text.push('\n');
    text
}

#[derive(Serialize)]
struct Object<'a> {
    loadtest: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'a Machine>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    reports: &'a [Report],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    comparisons: &'a [Comparison],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn document_has_the_shape_that_is_promised() {
        let reports = [samples::echo()];
        let comparisons = [samples::comparison()];
        let machine = samples::machine();
        let text = to_string(&Document {
            reports: &reports,
            comparisons: &comparisons,
            machine: Some(&machine),
        });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["loadtest"], env!("CARGO_PKG_VERSION"));
        assert_eq!(value["machine"]["cores"], 2);
        assert_eq!(value["reports"][0]["kind"], "echo");
        assert_eq!(value["reports"][0]["latency"]["p99_9"].as_f64(), Some(1480.0));
        assert_eq!(value["reports"][0]["messages"]["received"], 1_234_567);
        assert_eq!(value["comparisons"][0]["measures"][0]["contestants"][0]["name"], "floor");
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let value: serde_json::Value =
            serde_json::from_str(&to_string(&Document::default())).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_number_is_null() {
        let mut report = samples::empty();
        report.seconds = f64::NAN;
        report.messages.received_per_second = f64::INFINITY;
        let text = to_string(&Document { reports: &[report], ..Document::default() });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value["reports"][0]["seconds"].is_null());
        assert!(value["reports"][0]["messages"]["received_per_second"].is_null());
    }
}
