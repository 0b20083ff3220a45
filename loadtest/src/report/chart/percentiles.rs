//! How slow were the slow ones? A curve over the percentiles, each nine as wide as the one before.

use super::axis::{Axis, label};
use super::drawing::{Anchor, COLOURS, Drawing, MARGIN, WIDTH, fitted, text_width};
use crate::report::format;
use crate::report::model::Latency;
use crate::report::table;

/// One curve for each name: how long the fastest so many percent took at most. The latency axis is
/// logarithmic where the values differ by more than 20 times. A distribution of nothing has no
/// curve, only its name.
#[must_use]
pub fn percentiles(series: &[(&str, &Latency)]) -> String {
    let curves: Vec<Curve> =
        series.iter().map(|&(name, latency)| Curve::of(name, latency)).collect();
    let subtitle = "how long the fastest so many percent took at most · less is better";
    let mut drawing = Drawing::new("Latency by percentile", subtitle);

    let mut top = Drawing::below_heading() + 6.0;
    if curves.len() > 1 {
        top = legend(&mut drawing, &curves, top + 6.0) + 14.0;
    }
    let (left, right) = (MARGIN + 70.0, WIDTH - MARGIN - 26.0);
    let bottom = top + 270.0;
    let height = bottom + 54.0;

    let values = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    let y = Axis::fitting(values, "µs", (bottom, top), 6);
    let last = curves
        .iter()
        .filter_map(|curve| curve.points.last())
        .map(|point| point.0)
        .fold(2.0, f64::max);
    let x = |nines: f64| left + (right - left) * (nines / last).clamp(0.0, 1.0);

    for &tick in y.ticks() {
        let place = y.place(tick);
        drawing.line((left, place), (right, place), "grid");
        drawing.text(left - 9.0, place + 4.0, Anchor::End, "dim small", &label(tick, "µs"));
    }
    for percentile in [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999] {
        let nines = nines(percentile);
        if nines <= last + 1e-6 {
            drawing.line((x(nines), top), (x(nines), bottom), "grid");
            drawing.text(
                x(nines),
                bottom + 18.0,
                Anchor::Middle,
                "dim small",
                &format!("{percentile} %"),
            );
        }
    }
    drawing.line((left, bottom), (right, bottom), "base");
    drawing.text(f64::midpoint(left, right), bottom + 39.0, Anchor::Middle, "dim", "percentile");
    let y_title = if y.is_logarithmic() { "latency (logarithmic)" } else { "latency" };
    drawing.upward_text(MARGIN + 4.0, f64::midpoint(top, bottom), "dim", y_title);

    for (index, curve) in curves.iter().enumerate().rev() {
        let points: Vec<(f64, f64)> =
            curve.points.iter().map(|&(nines, value)| (x(nines), y.place(value))).collect();
        drawing.group(&curve.description, |drawing| drawing.curve(&points, &line_class(index)));
    }
    if let [curve] = &curves[..] {
        // Alone it has room for its values.
        for &(nines, value) in &curve.named {
            let place = (x(nines), y.place(value));
            let is_largest = nines >= last - 1e-6 && value >= curve.largest;
            let text =
                format!("{}{}", if is_largest { "max " } else { "" }, format::microseconds(value));
            drawing.dot(place, 3.5, "area s0");
            // A curve rises, so there is room below to the right and above to the left of it.
            if place.0 + 12.0 + text_width(&text, 12.5) < right {
                drawing.text(
                    place.0 + 7.0,
                    place.1 + 15.0,
                    Anchor::Start,
                    "ink strong small halo",
                    &text,
                );
            } else {
                drawing.text(
                    place.0 - 7.0,
                    place.1 - 7.0,
                    Anchor::End,
                    "ink strong small halo",
                    &text,
                );
            }
        }
    }
    if curves.iter().all(|curve| curve.points.is_empty()) {
        let middle = (f64::midpoint(left, right), f64::midpoint(top, bottom));
        drawing.text(middle.0, middle.1, Anchor::Middle, "dim", "no latency was measured");
    }

    let descriptions: Vec<&str> = curves.iter().map(|curve| curve.description.as_str()).collect();
    let description = if descriptions.is_empty() {
        "nothing measured".to_owned()
    } else {
        descriptions.join(". ")
    };
    drawing.finish(height, &format!("Latency by percentile. {description}."))
}

struct Curve {
    name: String,
    /// Nines and microseconds, ascending.
    points: Vec<(f64, f64)>,
    /// Nines and microseconds of what has a name, as far as the curve goes.
    named: Vec<(f64, f64)>,
    largest: f64,
    description: String,
}

impl Curve {
    fn of(name: &str, latency: &Latency) -> Self {
        let percentiles = [
            (0.0, latency.min),
            (50.0, latency.p50),
            (90.0, latency.p90),
            (99.0, latency.p99),
            (99.9, latency.p99_9),
            (99.99, latency.p99_99),
            (100.0, latency.max),
        ];
        // No distribution can say more than its count allows: of 1,000 the slowest is p99.9.
        let most_nines = (latency.count as f64).log10().clamp(0.0, MOST_NINES);
        let points = if latency.count == 0 {
            Vec::new()
        } else if latency.curve.is_empty() {
            percentiles.to_vec()
        } else {
            latency.curve.clone()
        };
        let mut points: Vec<(f64, f64)> = points
            .into_iter()
            .filter(|(percentile, value)| percentile.is_finite() && value.is_finite())
            .map(|(percentile, value)| (nines(percentile).min(most_nines), value))
            .collect();
        points.dedup_by(|next, previous| {
            // Past the last nine only the largest is left.
            (next.0 - previous.0).abs() < 1e-9 && {
                previous.1 = previous.1.max(next.1);
                true
            }
        });
        let end = points.last().map_or(0.0, |point| point.0);
        let named = percentiles[1..]
            .iter()
            .map(|&(percentile, value)| (nines(percentile), value))
            .filter(|&(nines, value)| {
                value.is_finite() && !points.is_empty() && nines <= end + 1e-6
            })
            .collect();
        let description = if latency.count == 0 {
            format!("{name}: nothing measured")
        } else {
            let said: Vec<String> = table::points(latency)
                .iter()
                .map(|(label, value)| format!("{label} {}", format::microseconds(*value)))
                .collect();
            format!("{name}: {}", said.join(", "))
        };
        Self { name: name.to_owned(), points, named, largest: latency.max, description }
    }
}

/// As far as the axis goes: 99.9999 %.
const MOST_NINES: f64 = 6.0;

/// How many nines a percentile has: 0 at 0 %, 1 at 90 %, 2 at 99 %.
fn nines(percentile: f64) -> f64 {
    let missing = (1.0 - percentile.clamp(0.0, 100.0) / 100.0).max(10f64.powf(-MOST_NINES));
    -missing.log10()
}

/// The names with their colours, in as many rows as they need. Returns the lower edge.
fn legend(drawing: &mut Drawing, curves: &[Curve], top: f64) -> f64 {
    let (mut x, mut y) = (MARGIN, top + 4.0);
    for (index, curve) in curves.iter().enumerate() {
        let name = fitted(&curve.name, 260.0, 12.5);
        let width = 28.0 + text_width(&name, 12.5) + 18.0;
        if x > MARGIN && x + width > WIDTH - MARGIN {
            x = MARGIN;
            y += 20.0;
        }
        drawing.curve(&[(x, y - 4.0), (x + 20.0, y - 4.0)], &line_class(index));
        drawing.text(x + 28.0, y, Anchor::Start, "ink", &name);
        x += width;
    }
    y
}

fn line_class(index: usize) -> String {
    let dashed = if (index / COLOURS).is_multiple_of(2) { "" } else { " dashed" };
    format!("line s{}{dashed}", index % COLOURS)
}
