//! See [`fuzz::identity`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::identity::check(data));
