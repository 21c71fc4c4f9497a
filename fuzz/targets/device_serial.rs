#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retrovisor_machine::kvm::fuzzing::serial(bytes));
