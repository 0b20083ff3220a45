//! Any bytes in any pieces: the same events and the same violation, and those of tungstenite.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::decoder(data));
