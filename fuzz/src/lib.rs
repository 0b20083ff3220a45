//! The properties of `tests/support/properties`, compiled once for all targets.

#[path = "../../tests/support/properties/mod.rs"]
pub mod properties;
