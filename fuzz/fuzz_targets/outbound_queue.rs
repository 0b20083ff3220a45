//! Any frames and any writes: whole frames leave in order, and drops are counted.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::outbound_queue(data));
