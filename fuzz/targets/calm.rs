//! See [`fuzz::calm`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::calm::check(data));
