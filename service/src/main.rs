//! The command `retrovisor`.
#![forbid(unsafe_code)]
fn main() {}
