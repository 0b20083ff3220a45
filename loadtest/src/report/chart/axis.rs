//! From a value to a place, and which values are written beside it.

use crate::report::format;

/// One axis: a range of values laid out over a range of pixels.
pub(super) struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

impl Axis {
    /// From zero to at least `max` (in `unit`), over the pixels `from..to`.
    pub(super) fn from_zero(
        max: f64,
        unit: &str,
        (from, to): (f64, f64),
        most_ticks: usize,
    ) -> Self {
        let max = if max.is_finite() && max > 0.0 { max } else { 1.0 };
        let step = step(max / most_ticks as f64, unit);
        let high = (max / step - 1e-9).ceil() * step;
        Self { low: 0.0, high, scale: Scale::Linear, from, to, ticks: multiples(0.0, high, step) }
    }

    /// From `low` to `high` exactly, over the pixels `from..to`.
    pub(super) fn between(
        low: f64,
        high: f64,
        unit: &str,
        (from, to): (f64, f64),
        most_ticks: usize,
    ) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        let ticks = multiples(low, high, step((high - low) / most_ticks as f64, unit));
        Self { low, high, scale: Scale::Linear, from, to, ticks }
    }

    /// From below `min` to above `max`, each place a factor; both must be above zero.
    pub(super) fn logarithmic(
        min: f64,
        max: f64,
        unit: &str,
        (from, to): (f64, f64),
        most_ticks: usize,
    ) -> Self {
        let min = min.max(f64::MIN_POSITIVE);
        let max = max.max(min);
        // Sizes double, everything else has decades with 1, 2 and 5.
        let candidates: Vec<f64> = if is_size(unit) {
            (0..64).map(|power| 2f64.powi(power)).collect()
        } else {
            (-9..16)
                .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
                .collect()
        };
        let low = candidates.iter().copied().rfind(|&value| value <= min).unwrap_or(min);
        let high =
            candidates.iter().copied().find(|&value| value >= max && value > low).unwrap_or(max);
        let within = || candidates.iter().copied().filter(|&value| value >= low && value <= high);
        let mut ticks: Vec<f64> = within().collect();
        if !is_size(unit) && ticks.len() > most_ticks {
            // Only the whole decades: 0.001, 0.01, …
            ticks = within()
                .filter(|value| (value.log10() - value.log10().round()).abs() < 1e-6)
                .collect();
        }
        let every = ticks.len().div_ceil(most_ticks).max(1);
        ticks = ticks.into_iter().step_by(every).collect();
        Self { low, high, scale: Scale::Logarithmic, from, to, ticks }
    }

    /// Logarithmic where `values` (in `unit`) differ by more than 20 times, else from zero.
    pub(super) fn fitting(
        values: impl Iterator<Item = f64> + Clone,
        unit: &str,
        pixels: (f64, f64),
        most_ticks: usize,
    ) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let max = finite.clone().fold(0.0, f64::max);
        let min = finite.fold(f64::INFINITY, f64::min);
        if min > 0.0 && max / min > 20.0 {
            Self::logarithmic(min, max, unit, pixels, most_ticks + 2)
        } else {
            Self::from_zero(max, unit, pixels, most_ticks)
        }
    }

    pub(super) fn is_logarithmic(&self) -> bool {
        self.scale == Scale::Logarithmic
    }

    /// The place of `value`, in pixels; never outside of the axis.
    pub(super) fn place(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => {
                (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln()
            }
        };
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        self.from + part * (self.to - self.from)
    }

    /// The values to be written beside the axis, ascending.
    pub(super) fn ticks(&self) -> &[f64] {
        &self.ticks
    }
}

/// What is written beside a tick.
pub(super) fn label(value: f64, unit: &str) -> String {
    match unit {
        _ if value == 0.0 => "0".to_owned(),
        "/s" => format!("{}/s", format::compact(value)),
        "cores" | "" => format::number(value),
        unit => format::quantity(value, unit),
    }
}

fn is_size(unit: &str) -> bool {
    matches!(unit, "bytes" | "B")
}

/// The smallest round number that is at least `least`.
fn step(least: f64, unit: &str) -> f64 {
    if !(least.is_finite() && least > 0.0) {
        return 1.0;
    }
    // Round is what looks round when written: 2.5 MiB, not 2,500,000 bytes.
    let whole = if is_size(unit) {
        (0..5).map(|power| 1024f64.powi(power)).rfind(|&size| size <= least.max(1.0)).unwrap_or(1.0)
    } else {
        1.0
    };
    let decade = 10f64.powf((least / whole).log10().floor());
    let digit = [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .find(|digit| digit * decade * whole >= least * (1.0 - 1e-9));
    let found = digit.unwrap_or(10.0) * decade * whole;
    // 1,000 KiB is no round size, 1 MiB is.
    if is_size(unit) && found / whole > 500.0 { 1024.0 * whole } else { found }
}

/// The multiples of `step` in `low..=high`. At most a few dozen, whatever the input.
fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    const MOST: u32 = 50;
    let first = (low / step - 1e-9).ceil();
    (0..MOST)
        .map(|index| (first + f64::from(index)) * step)
        .take_while(|&value| value <= high + step * 1e-6)
        // 3 · 0.1 is 0.30000000000000004.
        .map(|value| if value.abs() < step * 1e-6 { 0.0 } else { value })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, unit: &str) -> Vec<String> {
        axis.ticks().iter().map(|&value| label(value, unit)).collect()
    }

    #[test]
    fn ticks_are_round_in_their_unit() {
        let axis = Axis::from_zero(123_456.0, "/s", (0.0, 100.0), 4);
        assert_eq!(labels(&axis, "/s"), ["0", "50 k/s", "100 k/s", "150 k/s"]);
        let axis = Axis::from_zero(12.3 * 1024.0 * 1024.0, "bytes", (0.0, 100.0), 4);
        assert_eq!(labels(&axis, "bytes"), ["0", "5 MiB", "10 MiB", "15 MiB"]);
        let axis = Axis::from_zero(3000.0 * 1024.0, "bytes", (0.0, 100.0), 4);
        assert_eq!(labels(&axis, "bytes"), ["0", "1 MiB", "2 MiB", "3 MiB"]);
        let axis = Axis::from_zero(0.94, "cores", (0.0, 100.0), 4);
        assert_eq!(labels(&axis, "cores"), ["0", "0.25", "0.5", "0.75", "1"]);
        let axis = Axis::between(-0.5, 10.0, "s", (0.0, 100.0), 5);
        assert_eq!(labels(&axis, "s"), ["0", "2.5 s", "5 s", "7.5 s", "10 s"]);
    }

    #[test]
    fn logarithmic_axis_holds_its_values_between_round_ends() {
        let axis = Axis::logarithmic(110.0, 19_000.0, "µs", (0.0, 100.0), 8);
        assert_eq!(
            labels(&axis, "µs"),
            ["100 µs", "200 µs", "500 µs", "1 ms", "2 ms", "5 ms", "10 ms", "20 ms"]
        );
        assert!(axis.place(110.0) > 0.0 && axis.place(19_000.0) < 100.0);
        let axis = Axis::logarithmic(3.0, 3_000_000.0, "µs", (0.0, 100.0), 8);
        assert_eq!(labels(&axis, "µs"), ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"]);
        let axis = Axis::logarithmic(100.0, 22_000.0, "bytes", (0.0, 100.0), 8);
        assert_eq!(labels(&axis, "bytes").first().unwrap(), "64 B");
    }

    #[test]
    fn scale_is_logarithmic_only_above_twenty_times() {
        let is_logarithmic = |values: &[f64]| {
            Axis::fitting(values.iter().copied(), "µs", (0.0, 1.0), 4).is_logarithmic()
        };
        assert!(!is_logarithmic(&[1.0, 20.0]));
        assert!(is_logarithmic(&[1.0, 20.1]));
        assert!(!is_logarithmic(&[0.0, 100.0]));
        assert!(!is_logarithmic(&[]));
        assert!(!is_logarithmic(&[f64::NAN, f64::INFINITY]));
    }

    #[test]
    fn place_is_on_the_axis_whatever_the_value() {
        for axis in [
            Axis::from_zero(10.0, "µs", (10.0, 20.0), 4),
            Axis::logarithmic(1.0, 10.0, "µs", (10.0, 20.0), 8),
            Axis::logarithmic(0.0, 0.0, "µs", (10.0, 20.0), 8),
            Axis::from_zero(f64::NAN, "bytes", (10.0, 20.0), 4),
            Axis::between(0.0, 0.0, "s", (10.0, 20.0), 4),
            Axis::from_zero(1e300, "bytes", (10.0, 20.0), 4),
        ] {
            for value in [0.0, -1.0, 5.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!((10.0..=20.0).contains(&axis.place(value)));
            }
            assert!(axis.ticks().len() <= 50);
        }
    }
}
