//! Any path and query: refused with a short text, or understood the same when said again.

#![no_main]

#[path = "../../tests/support/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::target(data));
