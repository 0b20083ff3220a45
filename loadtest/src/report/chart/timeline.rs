//! What happened when? One panel below the other, over the same seconds.

use super::axis::{Axis, label};
use super::drawing::{Anchor, Drawing, MARGIN, WIDTH, text_width};
use crate::report::format;
use crate::report::model::Moment;

/// Messages, latency, open connections, and the server's cores and memory over time. A panel is
/// left out where nothing was measured for it, and for the connections where they never changed.
/// The time before measuring is shaded.
#[must_use]
pub fn timeline(moments: &[Moment], title: &str) -> String {
    let moments: Vec<Moment> = thinned(moments.iter().filter(|moment| moment.at.is_finite()));
    let panels = panels(&moments);
    let mut drawing = Drawing::new(title, "over the time in seconds since measuring began");
    let first_top = Drawing::below_heading() + 22.0;
    let (Some(first), Some(last)) = (moments.first(), moments.last()) else {
        drawing.text(MARGIN, first_top, Anchor::Start, "dim", "nothing was measured");
        return drawing.finish(first_top + 24.0, &format!("{title}. Nothing was measured."));
    };
    let (left, right) = (MARGIN + 70.0, WIDTH - MARGIN - 16.0);
    let x = Axis::between(first.at, last.at, "", (left, right), 8);

    let mut top = first_top;
    for panel in &panels {
        let bottom = top + PANEL;
        if first.at < 0.0 {
            drawing.rectangle((left, top), (x.place(0.0) - left, PANEL), 0.0, "shade");
        }
        let values = panel.lines.iter().flat_map(|line| line.values.iter().flatten().copied());
        let y = if panel.unit == "µs" {
            Axis::fitting(values, panel.unit, (bottom, top), 3)
        } else {
            Axis::from_zero(values.fold(0.0, f64::max), panel.unit, (bottom, top), 3)
        };
        for &tick in y.ticks() {
            let place = y.place(tick);
            drawing.line((left, place), (right, place), "grid");
            drawing.text(
                left - 9.0,
                place + 4.0,
                Anchor::End,
                "dim small",
                &label(tick, panel.unit),
            );
        }
        drawing.text(left, top - 9.0, Anchor::Start, "ink strong", panel.title);
        let heading_end = left + text_width(panel.title, 13.5) + 14.0;
        if y.is_logarithmic() {
            drawing.text(heading_end, top - 9.0, Anchor::Start, "dim small", "logarithmic");
        }
        drawing.text(right, top - 9.0, Anchor::End, "dim", &panel.summary);

        let is_alone = panel.lines.len() == 1;
        for line in &panel.lines {
            for run in line.runs(&moments) {
                let points: Vec<(f64, f64)> =
                    run.iter().map(|&(at, value)| (x.place(at), y.place(value))).collect();
                if is_alone {
                    drawing.area(&points, bottom, &format!("area fill {}", line.class));
                }
                drawing.curve(&points, &format!("line {}", line.class));
            }
        }
        if !is_alone {
            let mut legend_x = right - text_width(&panel.summary, 12.5) - 14.0;
            for line in panel.lines.iter().rev() {
                drawing.text(legend_x, top - 9.0, Anchor::End, "ink", line.name);
                legend_x -= text_width(line.name, 12.5) + 6.0;
                drawing.curve(
                    &[(legend_x - 16.0, top - 13.0), (legend_x, top - 13.0)],
                    &format!("line {}", line.class),
                );
                legend_x -= 30.0;
            }
        }
        drawing.line((left, bottom), (right, bottom), "base");
        top = bottom + BETWEEN_PANELS;
    }

    let bottom = top - BETWEEN_PANELS;
    for &tick in x.ticks() {
        let place = x.place(tick);
        drawing.text(place, bottom + 18.0, Anchor::Middle, "dim small", &label(tick, ""));
        for panel in 0..panels.len() {
            let panel_top = first_top + (PANEL + BETWEEN_PANELS) * panel as f64;
            drawing.line((place, panel_top + PANEL), (place, panel_top + PANEL + 4.0), "base");
        }
    }
    drawing.text(
        f64::midpoint(left, right),
        bottom + 38.0,
        Anchor::Middle,
        "dim",
        if first.at < 0.0 { "seconds (shaded: connecting and warming up)" } else { "seconds" },
    );
    let summaries: Vec<String> =
        panels.iter().map(|panel| format!("{}: {}", panel.title, panel.summary)).collect();
    drawing.finish(bottom + 52.0, &format!("{title}. {}.", summaries.join(". ")))
}

const PANEL: f64 = 92.0;
const BETWEEN_PANELS: f64 = 42.0;

struct Panel {
    title: &'static str,
    unit: &'static str,
    /// One number about the measured time.
    summary: String,
    lines: Vec<Line>,
}

struct Line {
    name: &'static str,
    class: &'static str,
    /// One for each moment.
    values: Vec<Option<f64>>,
}

impl Line {
    fn of(
        name: &'static str,
        class: &'static str,
        moments: &[Moment],
        value: impl Fn(&Moment) -> Option<f64>,
    ) -> Self {
        let values =
            moments.iter().map(|moment| value(moment).filter(|value| value.is_finite())).collect();
        Self { name, class, values }
    }

    fn has_values(&self) -> bool {
        self.values.iter().any(Option::is_some)
    }

    /// The parts without a gap, as seconds and value.
    fn runs(&self, moments: &[Moment]) -> Vec<Vec<(f64, f64)>> {
        let mut runs = vec![Vec::new()];
        for (moment, value) in moments.iter().zip(&self.values) {
            match (value, runs.last_mut()) {
                (Some(value), Some(run)) => run.push((moment.at, *value)),
                _ => runs.push(Vec::new()),
            }
        }
        runs.retain(|run| !run.is_empty());
        runs
    }
}

fn panels(moments: &[Moment]) -> Vec<Panel> {
    let measured: Vec<&Moment> = moments.iter().filter(|moment| moment.at > 0.0).collect();
    let mean = |value: &dyn Fn(&Moment) -> Option<f64>| {
        let values: Vec<f64> =
            measured.iter().filter_map(|moment| value(moment)).filter(|v| v.is_finite()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let largest = |value: &dyn Fn(&Moment) -> Option<f64>| {
        moments
            .iter()
            .filter_map(value)
            .filter(|value| value.is_finite())
            .reduce(f64::max)
            .unwrap_or(f64::NAN)
    };
    let received = |moment: &Moment| Some(moment.received_per_second);
    let open = |moment: &Moment| Some(moment.open as f64);
    let memory = |moment: &Moment| moment.memory.map(|memory| memory as f64);

    let mut panels = Vec::new();
    if moments.iter().any(|moment| moment.received_per_second > 0.0) {
        panels.push(Panel {
            title: "messages received",
            unit: "/s",
            summary: format!("mean {}", format::per_second(mean(&received))),
            lines: vec![Line::of("messages", "s0", moments, received)],
        });
    }
    let latencies: Vec<Line> = [
        Line::of("p50", "s2", moments, |moment| moment.p50),
        Line::of("p99", "s1", moments, |moment| moment.p99),
    ]
    .into_iter()
    .filter(Line::has_values)
    .collect();
    if !latencies.is_empty() {
        panels.push(Panel {
            title: "latency",
            unit: "µs",
            summary: format!("worst p99 {}", format::microseconds(largest(&|moment| moment.p99))),
            lines: latencies,
        });
    }
    let has_changed = moments.windows(2).any(|pair| pair[0].open != pair[1].open);
    // Where nothing else is known, it is at least known who was there.
    if has_changed || panels.is_empty() {
        panels.push(Panel {
            title: "open connections",
            unit: "",
            summary: format!("largest {}", format::number(largest(&open))),
            lines: vec![Line::of("open", "s5", moments, open)],
        });
    }
    let cores = Line::of("cores", "s3", moments, |moment| moment.cores);
    if cores.has_values() {
        panels.push(Panel {
            title: "cores of the server",
            unit: "cores",
            summary: format!("mean {}", format::cores(mean(&|moment| moment.cores))),
            lines: vec![cores],
        });
    }
    let line = Line::of("memory", "s4", moments, memory);
    if line.has_values() {
        panels.push(Panel {
            title: "memory of the server",
            unit: "bytes",
            summary: format!("largest {}", format::bytes(largest(&memory))),
            lines: vec![line],
        });
    }
    panels
}

/// A chart has no more pixels than this; the page would only grow.
const MOST_MOMENTS: usize = 600;

/// At most [`MOST_MOMENTS`], each standing for several: rates and cores in the mean, latency and
/// memory at their worst.
fn thinned<'a>(moments: impl Iterator<Item = &'a Moment>) -> Vec<Moment> {
    let all: Vec<&Moment> = moments.collect();
    let size = all.len().div_ceil(MOST_MOMENTS).max(1);
    let worst = |values: &mut dyn Iterator<Item = f64>| {
        values.filter(|value| value.is_finite()).reduce(f64::max)
    };
    let of_chunk = |chunk: &[&Moment]| {
        let last = chunk.last()?;
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let cores: Vec<f64> = chunk.iter().filter_map(|moment| moment.cores).collect();
        Some(Moment {
            at: last.at,
            open: last.open,
            received_per_second: mean(
                chunk.iter().map(|moment| moment.received_per_second).collect(),
            ),
            p50: worst(&mut chunk.iter().filter_map(|moment| moment.p50)),
            p99: worst(&mut chunk.iter().filter_map(|moment| moment.p99)),
            cores: (!cores.is_empty()).then(|| mean(cores)),
            memory: chunk.iter().filter_map(|moment| moment.memory).max(),
        })
    };
    all.chunks(size).filter_map(of_chunk).collect()
}
