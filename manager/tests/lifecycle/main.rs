//! The manager with a driver in memory that follows a script: no KVM, no QEMU, no process.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod cells;
mod commands;
mod driver;
mod evaluations;
mod failures;
mod hangs;
mod histories;
mod model;
mod setup;
mod sweep;
mod test_vm;
