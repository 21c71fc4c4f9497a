//! The manager with a driver in memory that follows a script: no KVM, no QEMU, no process.

mod cells;
mod driver;
mod failures;
mod histories;
mod model;
mod setup;
