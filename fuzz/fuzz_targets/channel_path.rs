//! Any path and query: refused with a short text, or understood the same when said again.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::channel_path(data));
