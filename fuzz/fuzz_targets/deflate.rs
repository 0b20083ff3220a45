//! Any messages: deflated and inflated they are themselves, by ours and by miniz_oxide.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::deflate(data));
