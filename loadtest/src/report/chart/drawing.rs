//! Text, lines and areas in SVG.

use std::fmt::Write;

use crate::report::format::escaped;

/// Width of every chart, in pixels: what a column of GitHub's has room for.
pub(super) const WIDTH: f64 = 760.0;

/// Room between the border and what is drawn, in pixels.
pub(super) const MARGIN: f64 = 22.0;

/// How many colours there are for lines; the next line begins again, dashed.
pub(super) const COLOURS: usize = 6;

/// Where a text is held.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A chart while it is drawn, from the back to the front.
pub(super) struct Drawing {
    body: String,
}

impl Drawing {
    /// Begins a chart with its heading; what follows it starts at [`Self::below_heading`].
    pub(super) fn new(title: &str, subtitle: &str) -> Self {
        let mut drawing = Self { body: String::new() };
        drawing.text(
            MARGIN,
            34.0,
            Anchor::Start,
            "ink title",
            &fitted(title, WIDTH - 2.0 * MARGIN, 17.0),
        );
        drawing.text(
            MARGIN,
            54.0,
            Anchor::Start,
            "dim",
            &fitted(subtitle, WIDTH - 2.0 * MARGIN, 12.5),
        );
        drawing
    }

    /// The upper edge of the room that the heading leaves, in pixels.
    pub(super) fn below_heading() -> f64 {
        70.0
    }

    /// Writes one line of text; `y` is its base line.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (x, y) = (pixels(x), pixels(y));
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{}</text>",
            escaped(text)
        );
    }

    /// Writes one line of text that reads upwards, centred on (`x`, `y`).
    pub(super) fn upward_text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let (x, y) = (pixels(x), pixels(y));
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" text-anchor=\"middle\" transform=\"translate({x} {y}) rotate(-90)\">{}</text>",
            escaped(text)
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let (x1, y1, x2, y2) = (pixels(from.0), pixels(from.1), pixels(to.0), pixels(to.1));
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        );
    }

    pub(super) fn rectangle(
        &mut self,
        corner: (f64, f64),
        size: (f64, f64),
        radius: f64,
        class: &str,
    ) {
        let (x, y, width, height) =
            (pixels(corner.0), pixels(corner.1), pixels(size.0.max(0.0)), pixels(size.1.max(0.0)));
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{}\"/>",
            pixels(radius)
        );
    }

    pub(super) fn dot(&mut self, at: (f64, f64), radius: f64, class: &str) {
        let (x, y, radius) = (pixels(at.0), pixels(at.1), pixels(radius));
        let _ =
            writeln!(self.body, "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"/>");
    }

    /// Draws a line through `points`. One point alone becomes a dot.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], class: &str) {
        match points {
            [] => {}
            [alone] => self.dot(*alone, 2.0, &class.replace("line", "area")),
            points => {
                let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{}\"/>", path(points));
            }
        }
    }

    /// Fills the area between `points` and the height `base`.
    pub(super) fn area(&mut self, points: &[(f64, f64)], base: f64, class: &str) {
        if let [first, .., last] = points {
            let outline = [&[(first.0, base)][..], points, &[(last.0, base)][..]].concat();
            let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{}Z\"/>", path(&outline));
        }
    }

    /// Groups what `draw` adds, with a text that is shown when one points at it.
    pub(super) fn group(&mut self, title: &str, draw: impl FnOnce(&mut Self)) {
        let _ = writeln!(self.body, "<g><title>{}</title>", escaped(title));
        draw(self);
        self.body.push_str("</g>\n");
    }

    /// Ends the chart. `description` is what a person hears who cannot see it.
    pub(super) fn finish(self, height: f64, description: &str) -> String {
        let (width, height, description) = (pixels(WIDTH), pixels(height), escaped(description));
        let (inner_width, inner_height) =
            (pixels(WIDTH - 1.0), height.parse::<f64>().unwrap_or(1.0) - 1.0);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" aria-label=\"{description}\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
             <title>{description}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{inner_width}\" height=\"{inner_height}\" rx=\"8\"/>\n\
             {}</svg>\n",
            self.body
        )
    }
}

/// How wide `text` is, in pixels. An estimate, since the reader's font is not known; it is for one
/// of the wider ones.
pub(super) fn text_width(text: &str, font_size: f64) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' => 0.30,
        'f' | 't' | 'r' | ' ' | '(' | ')' | '[' | ']' | '/' | '-' => 0.38,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.92,
        'A'..='Z' => 0.70,
        c if u32::from(c) >= 0x1100 => 1.0,
        _ => 0.58,
    };
    text.chars().map(of).sum::<f64>() * font_size
}

/// `text`, shortened to what fits into `width` pixels.
pub(super) fn fitted(text: &str, width: f64, font_size: f64) -> String {
    if text_width(text, font_size) <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        short.push(c);
        if text_width(&short, font_size) + font_size > width {
            short.pop();
            break;
        }
    }
    format!("{}…", short.trim_end())
}

/// A coordinate, to a tenth of a pixel. What is no number is drawn at the edge, not left to the
/// viewer's imagination.
fn pixels(value: f64) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn path(points: &[(f64, f64)]) -> String {
    let mut text = String::with_capacity(points.len() * 12);
    for (index, point) in points.iter().enumerate() {
        let _ = write!(
            text,
            "{}{} {}",
            if index == 0 { 'M' } else { 'L' },
            pixels(point.0),
            pixels(point.1)
        );
    }
    text
}

/// The colours are told apart with any of the usual kinds of colour blindness, and from the
/// background with at least 3 to 1. Plain properties, no variables: not every viewer of SVG files
/// knows those.
const STYLE: &str = "
.chart{font:12.5px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-variant-numeric:tabular-nums}
.chart .title{font-size:17px;font-weight:600}.chart .strong{font-weight:600}.chart .small{font-size:11.5px}
.chart .card{fill:#fff;stroke:#d1d9e0}.chart .ink{fill:#1f2328}.chart .dim{fill:#59636e}.chart .bad{fill:#b42318}
.chart .halo{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}.chart .grid{stroke:#e6eaee}.chart .base{stroke:#8c959f}.chart .whisker{stroke:#1f2328;stroke-width:1.5}
.chart .shade{fill:#818b98;fill-opacity:.13}.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .fill{fill-opacity:.14}.chart .dashed{stroke-dasharray:6 5}
.chart .s0{stroke:#0969da}.chart .s1{stroke:#d1580a}.chart .s2{stroke:#1a7f64}.chart .s3{stroke:#8250df}.chart .s4{stroke:#bf3989}.chart .s5{stroke:#7d6608}
.chart .area.s0{fill:#0969da}.chart .area.s1{fill:#d1580a}.chart .area.s2{fill:#1a7f64}.chart .area.s3{fill:#8250df}.chart .area.s4{fill:#bf3989}.chart .area.s5{fill:#7d6608}
.chart .area{stroke:none}.chart .own{fill:#0969da}.chart .other{fill:#a3b4c7}.chart .reference{fill:#6e7a87}
@media (prefers-color-scheme:dark){
.chart .card{fill:#0d1117;stroke:#3d444d}.chart .ink{fill:#f0f6fc}.chart .dim{fill:#9198a1}.chart .bad{fill:#ff938a}
.chart .halo{stroke:#0d1117}.chart .grid{stroke:#262c36}.chart .base{stroke:#656c76}.chart .whisker{stroke:#f0f6fc}.chart .fill{fill-opacity:.2}
.chart .s0{stroke:#58a6ff}.chart .s1{stroke:#f0883e}.chart .s2{stroke:#3fb996}.chart .s3{stroke:#b392f0}.chart .s4{stroke:#f778ba}.chart .s5{stroke:#d4b72e}
.chart .area.s0{fill:#58a6ff}.chart .area.s1{fill:#f0883e}.chart .area.s2{fill:#3fb996}.chart .area.s3{fill:#b392f0}.chart .area.s4{fill:#f778ba}.chart .area.s5{fill:#d4b72e}
.chart .area{stroke:none}.chart .own{fill:#3b8eed}.chart .other{fill:#4a5766}.chart .reference{fill:#7d8896}
}
";
