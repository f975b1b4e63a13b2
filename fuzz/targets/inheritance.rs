//! See [`fuzz::inheritance`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::inheritance::check(data));
