//! See [`fuzz::hbone`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::hbone::check(data));
