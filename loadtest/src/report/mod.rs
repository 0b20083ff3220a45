//! How is a result said? As a table for the terminal, as JSON, as one HTML page, as SVG charts.
//!
//! - [`model`]: the values.

pub mod model;
