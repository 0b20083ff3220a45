//! How is a result shown? As SVG charts that stand alone: with a background, colours for light and
//! dark, a title, and no font, script or picture from elsewhere.
//!
//! - [`bars()`]: one quantity of several servers.
//! - [`percentiles()`]: how slow were the slow ones?
//! - [`timeline()`]: what happened when?
//! - `drawing`: text, lines and areas in SVG. `axis`: from a value to a place.
//!
//! The SVG is written by hand: a library such as plotters writes a fixed colour into every element,
//! which rules out dark mode.

mod axis;
mod bars;
mod drawing;
mod percentiles;
mod timeline;

pub use bars::bars;
pub use percentiles::percentiles;
pub use timeline::timeline;

#[cfg(test)]
mod tests;
