//! How is a result said? As a table for the terminal, as JSON, as one HTML page, as SVG charts.
//!
//! Nothing here measures: values come in, text goes out. Only [`machine`] reads `/proc`, and only
//! [`progress`] writes to the terminal.
//!
//! - [`model`]: the values.
//! - [`format`](mod@format): a number, as a person reads it.
//! - [`table`]: a report or a comparison for the terminal.
//! - [`json`]: the same for programs.
//! - [`html`]: one page that can be sent on.
//! - [`markdown`]: tables for the documentation.
//! - [`chart`]: SVG charts, for the page and for the documentation.
//! - [`machine`]: what was it measured on?
//! - [`progress`]: the live line while a run goes.

pub mod chart;
pub mod format;
pub mod html;
pub mod json;
pub mod machine;
pub mod markdown;
pub mod model;
pub mod progress;
pub mod table;

#[cfg(test)]
mod samples;
