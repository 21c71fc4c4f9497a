#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retrovisor_snapshot::fuzzing::machine_state(bytes));
