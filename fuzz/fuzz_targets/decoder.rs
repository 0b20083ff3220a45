//! Any bytes in any pieces: the same events and the same error, no panic, no memory beyond what
//! arrived.

#![no_main]

#[path = "../../tests/support/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::decoder(data));
