//! How is a number said to a person? With at most three significant digits, and its unit.
//!
//! A value that is no number (NaN, infinite) is [`NONE`], everywhere.
//!
//! - durations: [`microseconds`], [`seconds`]
//! - sizes: [`bytes`]
//! - counts: [`count`], [`number`], [`per_second`], [`compact`]
//! - of a comparison: [`quantity`], [`ratio`]
//! - text of others: [`plain`] for a terminal, [`escaped`] for HTML and SVG.

use super::model::Ratio;

/// Stands where there is no value.
pub const NONE: &str = "–";

/// A duration given in microseconds: `85 ns`, `0.85 µs`, `12.3 µs`, `1.2 ms`, `3.4 s`.
#[must_use]
pub fn microseconds(value: f64) -> String {
    // Below 0.1 µs three decimals no longer hold two significant digits.
    if value != 0.0 && value.abs() < 0.0995 {
        return scaled(value * 1e3, &[(1.0, "ns")]);
    }
    scaled(value, &[(1.0, "µs"), (1e3, "ms"), (1e6, "s")])
}

/// How long a run took, given in seconds: `250 ms`, `10 s`, `5 min`, `2 h 5 min`.
#[must_use]
pub fn seconds(value: f64) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    if value == 0.0 {
        return "0 s".to_owned();
    }
    if value.abs() < 0.9995 {
        return microseconds(value * 1e6);
    }
    if value.abs() < 119.5 {
        return format!("{} s", number(value));
    }
    let whole = value.round() as i64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    let parts = if hours >= 2 {
        [(hours, "h"), (minutes, "min")]
    } else {
        [(whole / 60, "min"), (rest, "s")]
    };
    let said: Vec<String> =
        parts.iter().filter(|(n, _)| *n != 0).map(|(n, unit)| format!("{n} {unit}")).collect();
    said.join(" ")
}

/// A size given in bytes: `696 B`, `64 KiB`, `12.3 MiB`.
#[must_use]
pub fn bytes(value: f64) -> String {
    const KIB: f64 = 1024.0;
    if value.abs() < 1023.5 {
        // No one has a part of a byte, but a mean over many connections may.
        return scaled(if value.abs() >= 10.0 { value.round() } else { value }, &[(1.0, "B")]);
    }
    scaled(value, &[(KIB, "KiB"), (KIB.powi(2), "MiB"), (KIB.powi(3), "GiB"), (KIB.powi(4), "TiB")])
}

/// A whole number: `1,234,567`.
#[must_use]
pub fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// A number without a unit: `0.123`, `1.23`, `12.3`, `1,234,567`.
#[must_use]
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    let magnitude = value.abs();
    let decimals = match magnitude {
        m if m < 0.9995 => 3,
        m if m < 9.995 => 2,
        m if m < 99.95 => 1,
        _ => 0,
    };
    let digits = format!("{magnitude:.decimals$}");
    let digits = match digits.split_once('.') {
        Some(_) => digits.trim_end_matches('0').trim_end_matches('.'),
        None => &digits,
    };
    // A value that is rounded to nothing has no sign.
    let sign = if value < 0.0 && digits != "0" { "−" } else { "" };
    format!("{sign}{}", grouped(digits))
}

/// How often in a second: `123,457/s`, `0.5/s`.
#[must_use]
pub fn per_second(value: f64) -> String {
    scaled(value, &[(1.0, "/s")]).replace(' ', "")
}

/// A number where room is short, as on an axis: `950`, `12.5 k`, `1.2 M`.
#[must_use]
pub fn compact(value: f64) -> String {
    scaled(value, &[(1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G")])
}

/// A value of a [`Measure`](super::model::Measure) or a [`Finding`](super::model::Finding), in
/// its unit: `µs` and `bytes` are made readable, any other unit is written behind the number.
#[must_use]
pub fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "µs" | "us" => microseconds(value),
        "ms" => microseconds(value * 1e3),
        "s" => seconds(value),
        "bytes" | "B" => bytes(value),
        "/s" => per_second(value),
        unit => scaled(value, &[(1.0, unit)]),
    }
}

/// A ratio with its spread: `1.04 (1.01–1.09)`.
#[must_use]
pub fn ratio(ratio: &Ratio) -> String {
    let Ratio { median, min, max } = *ratio;
    if !median.is_finite() {
        return NONE.to_owned();
    }
    if !(min.is_finite() && max.is_finite()) || min == max {
        return factor(median);
    }
    format!("{} ({}–{})", factor(median), factor(min), factor(max))
}

/// How many times as much: `1.04`, `12.3`, `1,234`. Keeps its two decimals, unlike [`number`]:
/// ratios are read one below the other.
#[must_use]
pub fn factor(value: f64) -> String {
    match value {
        v if !v.is_finite() => NONE.to_owned(),
        v if v.abs() < 9.995 => format!("{:.2}", v + 0.0),
        v => number(v),
    }
}

/// Cores used: `0.93 cores`.
#[must_use]
pub fn cores(value: f64) -> String {
    if value.is_finite() { format!("{value:.2} cores") } else { NONE.to_owned() }
}

/// An RFC 3339 instant in UTC without `T`, fraction and `Z`: `2026-07-04 10:00:00 UTC`. Anything
/// else stays as it is.
#[must_use]
pub fn instant(rfc3339: &str) -> String {
    let Some((date, time)) = rfc3339.split_once('T') else { return rfc3339.to_owned() };
    let Some(time) = time.strip_suffix('Z') else { return rfc3339.to_owned() };
    let whole_seconds = time.split_once('.').map_or(time, |(whole, _)| whole);
    format!("{date} {whole_seconds} UTC")
}

/// Counts a thing: `1 error`, `1,234 errors`. The plural ends in `s`.
#[must_use]
pub fn counted(value: u64, singular: &str) -> String {
    format!("{} {singular}{}", count(value), if value == 1 { "" } else { "s" })
}

/// Text of others on one line of a terminal. A control character would move the cursor or change
/// the colours, so it is written as its escape.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// Text of others inside HTML or SVG, also inside an attribute.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            // XML has no way to write these, not even as a reference.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// The first `max_characters` of `text`, the last of them `…` where something was left out.
#[must_use]
pub fn shortened(text: &str, max_characters: usize) -> String {
    if text.chars().count() <= max_characters {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(max_characters.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

/// Picks the largest of `units` (ascending) in which the rounded value is at least one.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    let mut chosen = units[0];
    for pair in units.windows(2) {
        let ((size, _), (next_size, _)) = (pair[0], pair[1]);
        // What would be printed as 1,000 µs is 1 ms.
        let rounded =
            if (value / size).abs() >= 99.95 { (value / size).round() } else { value / size };
        if rounded.abs() < next_size / size {
            break;
        }
        chosen = pair[1];
    }
    let (size, unit) = chosen;
    if unit.is_empty() { number(value / size) } else { format!("{} {unit}", number(value / size)) }
}

/// Puts a comma before every three digits of the whole part.
fn grouped(digits: &str) -> String {
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let mut said = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            said.push(',');
        }
        said.push(digit);
    }
    if let Some(fraction) = fraction {
        said.push('.');
        said.push_str(fraction);
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_change_their_unit_where_the_rounded_value_does() {
        let said: Vec<String> =
            [0.0, 0.004, 0.085, 0.854, 7.5, 12.34, 99.96, 999.4, 999.6, 1234.0, 999_600.0, 75.2e6]
                .into_iter()
                .map(microseconds)
                .collect();
        assert_eq!(
            said,
            [
                "0 µs",
                "4 ns",
                "85 ns",
                "0.854 µs",
                "7.5 µs",
                "12.3 µs",
                "100 µs",
                "999 µs",
                "1 ms",
                "1.23 ms",
                "1 s",
                "75.2 s"
            ]
        );
    }

    #[test]
    fn run_times_are_said_in_the_unit_of_a_person() {
        let said: Vec<String> = [0.0, 0.25, 0.9999, 3.2, 10.0, 90.0, 119.6, 300.0, 320.0, 7500.0]
            .into_iter()
            .map(seconds)
            .collect();
        assert_eq!(
            said,
            [
                "0 s",
                "250 ms",
                "1 s",
                "3.2 s",
                "10 s",
                "90 s",
                "2 min",
                "5 min",
                "5 min 20 s",
                "2 h 5 min"
            ]
        );
    }

    #[test]
    fn sizes_change_their_unit_at_1024() {
        let said: Vec<String> = [
            0.0,
            0.5,
            696.4,
            1023.0,
            1023.9,
            65536.0,
            1023.6 * 1024.0,
            12.3 * 1024.0 * 1024.0,
            -2048.0,
        ]
        .into_iter()
        .map(bytes)
        .collect();
        assert_eq!(
            said,
            ["0 B", "0.5 B", "696 B", "1,023 B", "1 KiB", "64 KiB", "1 MiB", "12.3 MiB", "−2 KiB"]
        );
    }

    #[test]
    fn counts_are_grouped_by_three() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"].map(str::to_owned)
        );
        assert_eq!(per_second(123_456.7), "123,457/s");
        assert_eq!(per_second(0.5), "0.5/s");
        assert_eq!(compact(12_500.0), "12.5 k");
        assert_eq!(compact(999_999.0), "1 M");
        assert_eq!(counted(1, "error"), "1 error");
        assert_eq!(counted(1200, "error"), "1,200 errors");
    }

    #[test]
    fn what_is_no_number_is_a_dash_everywhere() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for say in [microseconds, seconds, bytes, number, per_second, compact, factor, cores] {
                assert_eq!(say(value), NONE);
            }
            assert_eq!(quantity(value, "messages"), NONE);
            assert_eq!(ratio(&Ratio { median: value, min: 1.0, max: 2.0 }), NONE);
        }
        assert_eq!(ratio(&Ratio { median: 1.0, min: f64::NAN, max: 2.0 }), "1.00");
        assert_eq!(number(-0.0), "0");
        assert_eq!(number(-0.0001), "0");
        assert_eq!(factor(-0.0), "0.00");
    }

    #[test]
    fn ratio_is_said_with_its_spread() {
        assert_eq!(ratio(&Ratio { median: 1.04, min: 1.011, max: 1.0949 }), "1.04 (1.01–1.09)");
        assert_eq!(ratio(&Ratio { median: 1.0, min: 1.0, max: 1.0 }), "1.00");
        assert_eq!(ratio(&Ratio { median: 12.34, min: 9.99, max: 1234.0 }), "12.3 (9.99–1,234)");
    }

    #[test]
    fn quantity_speaks_the_unit_it_is_given() {
        assert_eq!(quantity(7.5, "µs"), "7.5 µs");
        assert_eq!(quantity(65536.0, "bytes"), "64 KiB");
        assert_eq!(quantity(1234.0, "messages"), "1,234 messages");
        assert_eq!(quantity(2.5, ""), "2.5");
    }

    #[test]
    fn instant_loses_fraction_and_letters() {
        assert_eq!(instant("2026-07-04T10:00:00.123Z"), "2026-07-04 10:00:00 UTC");
        assert_eq!(instant("2026-07-04T10:00:00Z"), "2026-07-04 10:00:00 UTC");
        assert_eq!(instant("yesterday"), "yesterday");
    }

    #[test]
    fn text_of_others_cannot_leave_its_place() {
        assert_eq!(plain("a\x1b[31mb\nc"), "a\\u{1b}[31mb\\nc");
        assert_eq!(
            escaped("<script>alert(\"1\" & '2')</script>\u{0}"),
            "&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;\u{fffd}"
        );
        assert_eq!(shortened("uWebSockets", 8), "uWebSoc…");
        assert_eq!(shortened("µµµ", 3), "µµµ");
    }
}
