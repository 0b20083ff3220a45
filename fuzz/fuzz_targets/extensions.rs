//! Any offers of extensions: an answer that RFC 7692 allows for the first that can be met.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::extensions(data));
