#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retrovisor_snapshot::fuzzing::pack_header(bytes));
