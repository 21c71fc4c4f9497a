//! End-to-end, crash and lab tests.
#![forbid(unsafe_code)]
