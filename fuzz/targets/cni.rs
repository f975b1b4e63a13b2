//! See [`fuzz::cni`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::cni::check(data));
