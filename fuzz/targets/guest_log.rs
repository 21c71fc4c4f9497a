#![no_main]

use retrovisor_introspect::fuzzing::Question;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retrovisor_fuzz::ask_guest(Question::Log, bytes));
