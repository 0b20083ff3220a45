//! Any bytes as a deflated payload: what miniz_oxide makes of them, within the limit.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::inflate(data));
