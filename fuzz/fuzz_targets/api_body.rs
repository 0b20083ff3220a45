//! Any method and body of an API call: refused with a short text, or what its JSON says.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::api_body(data));
