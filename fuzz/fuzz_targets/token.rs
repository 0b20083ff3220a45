//! Any token, claims, header or file of keys: nothing is believed that was not signed.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::token(data));
