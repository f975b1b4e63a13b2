//! See [`fuzz::addresses`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::addresses::check(data));
