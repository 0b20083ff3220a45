//! What a connection of a trusted proxy begins with, whatever it is.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::proxy_protocol(data));
