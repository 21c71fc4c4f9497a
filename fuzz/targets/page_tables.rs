#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retrovisor_introspect::fuzzing::page_tables(bytes));
