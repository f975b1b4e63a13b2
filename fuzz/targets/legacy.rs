//! See [`fuzz::legacy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::legacy::check(data));
