//! Sound frames in any order and any pieces: the messages that a model makes of them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::assembly(data));
