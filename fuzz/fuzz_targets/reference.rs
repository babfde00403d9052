#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forelayer_fuzz::reference(data));
