//! How is a comparison said in the documentation? As tables of GitHub's Markdown.
//!
//! - [`comparison`]: one table for each measure, one row for each contestant.
//! - [`matrix`]: one measure of several comparisons, one column for each comparison.

use std::fmt::Write;

use super::format::{self, NONE};
use super::model::{Comparison, Measure};
use super::table;

/// A heading, one table for each measure, and the command; ends with a newline.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let mut text = format!("### {}\n", escaped(&comparison.title));
    for measure in &comparison.measures {
        let _ = write!(text, "\n{}", self::measure(measure));
    }
    if !comparison.command.is_empty() {
        let _ = write!(text, "\n{}", fenced("sh", &comparison.command));
    }
    text
}

/// The measure called `measure_label` of all `comparisons`: a row for each contestant, a column
/// for each comparison, `7.5 µs (1.04)` in a cell, the ratio being the one to the reference. A
/// cell without a value has a footnote that says why. Ends with a newline.
#[must_use]
pub fn matrix(title: &str, comparisons: &[Comparison], measure_label: &str) -> String {
    let columns: Vec<(&Comparison, Option<&Measure>)> = comparisons
        .iter()
        .map(|comparison| {
            (comparison, comparison.measures.iter().find(|measure| measure.label == measure_label))
        })
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for contestant in
        columns.iter().filter_map(|(_, measure)| *measure).flat_map(|m| &m.contestants)
    {
        if !names.contains(&contestant.name.as_str()) {
            names.push(&contestant.name);
        }
    }

    let mut text = format!("### {}\n\n", escaped(title));
    let references: Vec<&str> = columns
        .iter()
        .filter_map(|(_, measure)| Some(measure.as_ref()?.reference()?.name.as_str()))
        .fold(Vec::new(), |mut seen, name| {
            if !seen.contains(&name) {
                seen.push(name);
            }
            seen
        });
    let in_brackets = match references[..] {
        [reference] => format!("; in brackets how many times the value of {}", escaped(reference)),
        [] => String::new(),
        _ => "; in brackets how many times the value of the reference".to_owned(),
    };
    let _ = writeln!(
        text,
        "{}, median of the rounds{in_brackets}. Smaller is better.\n",
        escaped(measure_label)
    );
    if names.is_empty() {
        let _ = writeln!(text, "No values.");
        return text;
    }

    text.push('|');
    for header in
        std::iter::once(String::new()).chain(columns.iter().map(|(c, _)| escaped(&c.title)))
    {
        let _ = write!(text, " {header} |");
    }
    text.push_str("\n| :--- |");
    text.push_str(&" ---: |".repeat(columns.len()));
    text.push('\n');
    let mut footnotes = Footnotes::default();
    for name in names {
        let _ = write!(text, "| {} |", escaped(name));
        for (_, measure) in &columns {
            let _ = write!(text, " {} |", cell(*measure, name, &mut footnotes));
        }
        text.push('\n');
    }
    text + &footnotes.to_string()
}

/// One table: a row for each contestant, failures below it.
fn measure(measure: &Measure) -> String {
    let reference = match measure.reference() {
        Some(reference) => format!("to {}", escaped(&reference.name)),
        None => "ratio".to_owned(),
    };
    let mut text = format!(
        "| {} | median | {reference} | rounds |\n| :--- | ---: | :--- | :--- |\n",
        escaped(&measure.label)
    );
    let mut footnotes = Footnotes::default();
    for contestant in &measure.contestants {
        let name = escaped(&contestant.name);
        let _ = match contestant.value() {
            Ok(median) => writeln!(
                text,
                "| {name} | {} | {} | {} |",
                format::quantity(median, measure.unit),
                contestant.ratio.as_ref().map_or(NONE.to_owned(), format::ratio),
                table::rounds(&contestant.rounds, measure.unit)
            ),
            Err(reason) => {
                writeln!(text, "| {name} | {NONE}{} | {NONE} | |", footnotes.mark(reason))
            }
        };
    }
    text + &footnotes.to_string()
}

fn cell(measure: Option<&Measure>, name: &str, footnotes: &mut Footnotes) -> String {
    let Some(measure) = measure else {
        return format!("{NONE}{}", footnotes.mark("not measured in this comparison"));
    };
    let Some(contestant) = measure.contestants.iter().find(|contestant| contestant.name == name)
    else {
        return format!("{NONE}{}", footnotes.mark("took no part in this comparison"));
    };
    match contestant.value() {
        Err(reason) => format!("{NONE}{}", footnotes.mark(reason)),
        Ok(median) => {
            let value = format::quantity(median, measure.unit);
            match &contestant.ratio {
                Some(ratio) if ratio.median.is_finite() => {
                    format!("{value} ({})", format::factor(ratio.median))
                }
                _ => value,
            }
        }
    }
}

/// Reasons below a table, each said once. Not GitHub's own `[^1]`: those have one numbering for a
/// whole page, and this text is one part of it.
#[derive(Default)]
struct Footnotes {
    reasons: Vec<String>,
}

impl Footnotes {
    /// The mark that stands behind the dash.
    fn mark(&mut self, reason: &str) -> String {
        let reason = escaped(reason);
        let index = self.reasons.iter().position(|known| *known == reason).unwrap_or_else(|| {
            self.reasons.push(reason);
            self.reasons.len() - 1
        });
        format!("<sup>{}</sup>", index + 1)
    }
}

impl std::fmt::Display for Footnotes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, reason) in self.reasons.iter().enumerate() {
            // Every note its own paragraph, without which they would run together.
            write!(f, "\n<sup>{}</sup> {reason}\n", index + 1)?;
        }
        Ok(())
    }
}

/// Text of others on one line of Markdown, also within a table.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '~' | '$' => {
                safe.push('\\');
                safe.push(c);
            }
            // `@name` would call a person of that name, `#1` link to an issue.
            '@' | '#' => {
                let _ = write!(safe, "&#{};", u32::from(c));
            }
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A code block whose fence is longer than any in the code.
fn fenced(language: &str, code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", code.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn comparison_reads_like_this() {
        let mut only_cpu = samples::comparison();
        only_cpu.measures.truncate(1);
        only_cpu.measures[0].contestants.remove(3);
        let expected = "\
### echo 64 B, 16 in flight

| server CPU a message | median | to floor | rounds |
| :--- | ---: | :--- | :--- |
| floor | 7.25 µs | 1.00 | 7.21 µs, 7.3 µs, 7.18 µs, 7.25 µs, 7.4 µs |
| wsgate | 7.55 µs | 1.04 (1.03–1.09) | 7.5 µs, 7.55 µs, 7.48 µs, 7.6 µs, 7.9 µs |
| uWebSockets | 8.9 µs | 1.23 (1.21–1.32) | 8.9 µs, 8.8 µs, 9.6 µs, 8.95 µs, 8.9 µs |
| ws (Node.js) | –<sup>1</sup> | – | |
| gorilla/websocket | 22.1 µs | 3.05 (2.95–3.31) | 22.1 µs, 22.7 µs, 21.4 µs, 21.9 µs, 24 µs |

<sup>1</sup> connection refused: is it installed?

```sh
loadtest compare echo --connections 100 --size 64B --in-flight 16 --rounds 5
```
";
        assert_eq!(comparison(&only_cpu), expected);
    }

    #[test]
    fn matrix_has_a_column_for_each_comparison_and_says_why_a_cell_is_empty() {
        let mut small = samples::comparison();
        small.title = "64 B".to_owned();
        small.measures[0].contestants = vec![
            samples::contestant("floor", &[7.25]),
            samples::contestant("wsgate", &[7.54]),
            samples::failed("ws", "it crashed"),
        ];
        let mut large = small.clone();
        large.title = "16 KiB".to_owned();
        large.measures[0].contestants =
            vec![samples::contestant("floor", &[9.0]), samples::failed("wsgate", "it crashed")];
        let mut other = large.clone();
        other.title = "idle".to_owned();
        other.measures.clear();
        let expected = "\
### Echo

server CPU a message, median of the rounds; in brackets how many times the value of floor. Smaller is better.

|  | 64 B | 16 KiB | idle |
| :--- | ---: | ---: | ---: |
| floor | 7.25 µs (1.00) | 9 µs (1.00) | –<sup>1</sup> |
| wsgate | 7.54 µs (1.04) | –<sup>2</sup> | –<sup>1</sup> |
| ws | –<sup>2</sup> | –<sup>3</sup> | –<sup>1</sup> |

<sup>1</sup> not measured in this comparison

<sup>2</sup> it crashed

<sup>3</sup> took no part in this comparison
";
        assert_eq!(matrix("Echo", &[small, large, other], "server CPU a message"), expected);
    }

    #[test]
    fn matrix_of_nothing_says_so() {
        assert!(matrix("Echo", &[], "server CPU a message").contains("No values."));
        assert!(matrix("Echo", &[samples::comparison()], "no such measure").contains("No values."));
    }

    #[test]
    fn text_of_others_stays_text() {
        let safe = escaped(samples::HOSTILE);
        assert!(!safe.contains('<') && !safe.contains('\u{1b}'));
        assert!(safe.contains("\\| \\`\\*\\_\\[a\\](b)"), "{safe}");
        assert_eq!(escaped("a\nb @c #1"), "a b &#64;c &#35;1");
        assert_eq!(fenced("sh", "echo ```"), "````sh\necho ```\n````\n");
    }
}
