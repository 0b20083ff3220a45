//! Any head of a request: refused for a rule that it breaks, or breaking none.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::handshake(data));
