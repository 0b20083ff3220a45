//! One quantity of several servers: a bar each, the smallest first.

use super::axis::{Axis, label};
use super::drawing::{Anchor, Drawing, MARGIN, WIDTH, fitted, text_width};
use crate::report::format;
use crate::report::model::{Contestant, Measure};

/// One bar for each contestant, with a whisker from the smallest to the largest round and the
/// value written on. Who has no value stands last, with the reason. The axis is logarithmic where
/// the values differ by more than 20 times.
#[must_use]
pub fn bars(measure: &Measure, title: &str) -> String {
    let mut valued: Vec<(&Contestant, f64)> = Vec::new();
    let mut failed: Vec<(&Contestant, &str)> = Vec::new();
    for contestant in &measure.contestants {
        match contestant.value() {
            Ok(value) => valued.push((contestant, value)),
            Err(reason) => failed.push((contestant, reason)),
        }
    }
    valued.sort_by(|(_, left), (_, right)| left.total_cmp(right));

    let reference = measure.reference();
    let labels: Vec<Labels> = valued
        .iter()
        .map(|&(contestant, value)| Labels::of(contestant, value, measure, reference))
        .collect();
    let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max);
    let names = widest(&mut measure.contestants.iter().map(|c| text_width(&c.name, 13.0)))
        .clamp(40.0, 190.0);
    let left = MARGIN + names + 12.0;
    let right = WIDTH - MARGIN - widest(&mut labels.iter().map(Labels::width)).max(40.0) - 10.0;
    let axis = axis(&valued, measure.unit, (left, right));

    let most_rounds =
        measure.contestants.iter().map(|contestant| contestant.rounds.len()).max().unwrap_or(0);
    let mut drawing = Drawing::new(title, &subtitle(measure, most_rounds));
    let top = Drawing::below_heading() + 4.0;
    let row_top = |row: usize| top + ROW * row as f64;
    let bars_end = row_top(valued.len());

    if let Some(axis) = &axis {
        for &tick in axis.ticks() {
            let x = axis.place(tick);
            drawing.line((x, top), (x, bars_end + 4.0), "grid");
            drawing.text(
                x,
                bars_end + 20.0,
                Anchor::Middle,
                "dim small",
                &label(tick, measure.unit),
            );
        }
    }
    for (row, ((contestant, value), labels)) in valued.iter().zip(&labels).enumerate() {
        let Some(axis) = &axis else { break };
        let y = row_top(row);
        let class = class_of(contestant, measure, reference);
        drawing.group(&labels.whole, |drawing| {
            let middle = y + ROW / 2.0;
            let emphasis = if class == "own" { "ink strong" } else { "ink" };
            drawing.text(
                left - 12.0,
                middle + 4.5,
                Anchor::End,
                emphasis,
                &fitted(&contestant.name, names, 13.0),
            );
            let end = axis.place(*value);
            drawing.rectangle((left, y + (ROW - BAR) / 2.0), (end - left, BAR), 2.0, class);
            let mut after = end;
            if let Some((min, max)) = contestant.spread().filter(|(min, max)| min < max) {
                let (from, to) = (axis.place(min), axis.place(max));
                drawing.line((from, middle), (to, middle), "whisker");
                for x in [from, to] {
                    drawing.line((x, middle - 4.5), (x, middle + 4.5), "whisker");
                }
                after = after.max(to);
            }
            drawing.text(after + 9.0, middle + 4.5, Anchor::Start, "ink strong", &labels.value);
            let behind = after + 9.0 + text_width(&labels.value, VALUE_SIZE) + 8.0;
            drawing.text(behind, middle + 4.5, Anchor::Start, "dim", &labels.ratio);
        });
    }
    if let Some(axis) = &axis {
        drawing.line((left, top), (left, bars_end + 4.0), "base");
        let scale = if axis.is_logarithmic() { " (logarithmic)" } else { "" };
        let axis_title = format!("{}{scale}", measure.label);
        drawing.text(
            f64::midpoint(left, right),
            bars_end + 39.0,
            Anchor::Middle,
            "dim",
            &fitted(&axis_title, right - left, 12.5),
        );
    }

    let mut y = if axis.is_some() { bars_end + 48.0 } else { top };
    for (contestant, reason) in &failed {
        let whole = format!("{}: no value, {reason}", contestant.name);
        drawing.group(&whole, |drawing| {
            drawing.text(
                left - 12.0,
                y + 19.0,
                Anchor::End,
                "ink",
                &fitted(&contestant.name, names, 13.0),
            );
            let said = fitted(&format!("no value: {reason}"), WIDTH - MARGIN - left, 12.5);
            drawing.text(left + 6.0, y + 19.0, Anchor::Start, "bad", &said);
        });
        y += FAILED_ROW;
    }
    if measure.contestants.is_empty() {
        drawing.text(MARGIN, y + 19.0, Anchor::Start, "dim", "nobody took part");
        y += FAILED_ROW;
    }
    drawing.finish(y + 14.0, &description(title, &labels, &failed))
}

const ROW: f64 = 34.0;
const BAR: f64 = 20.0;
const FAILED_ROW: f64 = 26.0;
const VALUE_SIZE: f64 = 13.0;

/// What stands behind a bar.
struct Labels {
    value: String,
    ratio: String,
    /// Everything in one sentence.
    whole: String,
}

impl Labels {
    fn of(
        contestant: &Contestant,
        value: f64,
        measure: &Measure,
        reference: Option<&Contestant>,
    ) -> Self {
        let value = format::quantity(value, measure.unit);
        let is_reference = reference.is_some_and(|reference| std::ptr::eq(reference, contestant));
        let ratio = match contestant.ratio {
            Some(ratio) if ratio.median.is_finite() && !is_reference => {
                format!("× {}", format::factor(ratio.median))
            }
            _ => String::new(),
        };
        let mut whole = format!("{}: {value}", contestant.name);
        if let Some((min, max)) = contestant.spread().filter(|(min, max)| min < max) {
            let (min, max) =
                (format::quantity(min, measure.unit), format::quantity(max, measure.unit));
            whole.push_str(&format!(", from {min} to {max}"));
        }
        if let (false, Some(reference), Some(ratio)) =
            (ratio.is_empty(), reference, &contestant.ratio)
        {
            whole.push_str(&format!("; {} times {}", format::ratio(ratio), reference.name));
        }
        Self { value, ratio, whole }
    }

    fn width(&self) -> f64 {
        19.0 + text_width(&self.value, VALUE_SIZE) + text_width(&self.ratio, 12.5)
    }
}

/// `None` where nobody has a value.
fn axis(valued: &[(&Contestant, f64)], unit: &str, pixels: (f64, f64)) -> Option<Axis> {
    let (smallest, largest) = (valued.first()?.1, valued.last()?.1);
    let ends = valued.iter().filter_map(|(contestant, _)| contestant.spread());
    let (low, high) =
        ends.fold((smallest, largest), |(low, high), (min, max)| (low.min(min), high.max(max)));
    Some(if low > 0.0 && largest / smallest > 20.0 {
        // Half, so that the smallest still has a bar.
        Axis::logarithmic(low / 2.0, high, unit, pixels, 8)
    } else {
        Axis::from_zero(high, unit, pixels, 6)
    })
}

fn subtitle(measure: &Measure, most_rounds: usize) -> String {
    let mut parts = Vec::new();
    if most_rounds > 1 {
        parts.push(format!("median of {most_rounds} rounds, whiskers from smallest to largest"));
    }
    let has_ratio =
        measure.contestants.len() > 1 && measure.contestants.iter().any(|c| c.ratio.is_some());
    if let (true, Some(reference)) = (has_ratio, measure.reference()) {
        parts.push(format!("× times {}", reference.name));
    }
    parts.push("less is better".to_owned());
    parts.join(" · ")
}

/// What the comparison is about stands out: the gateway, else the first that was named.
fn class_of(
    contestant: &Contestant,
    measure: &Measure,
    reference: Option<&Contestant>,
) -> &'static str {
    let is_own = |contestant: &Contestant| contestant.name.starts_with("wsgate");
    let nobody_is_own = !measure.contestants.iter().any(is_own);
    let is_reference = reference.is_some_and(|reference| std::ptr::eq(reference, contestant));
    if is_own(contestant) || (nobody_is_own && is_reference && contestant.name != "floor") {
        "own"
    } else if is_reference {
        "reference"
    } else {
        "other"
    }
}

fn description(title: &str, labels: &[Labels], failed: &[(&Contestant, &str)]) -> String {
    let values = labels.iter().map(|labels| labels.whole.clone());
    let failures = failed
        .iter()
        .map(|(contestant, reason)| format!("{}: no value, {reason}", contestant.name));
    let all: Vec<String> = values.chain(failures).collect();
    format!(
        "{title}. {}.",
        if all.is_empty() { "Nobody took part".to_owned() } else { all.join(". ") }
    )
}
