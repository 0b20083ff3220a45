//! Any subscriptions in any order: who is subscribed is who a plain list says.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsgate_fuzz::properties::hub(data));
