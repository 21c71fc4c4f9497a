//! Drivers of virtual machines: stock QEMU, and a memory-only machine for tests.
//!
//! A driver implements [`retrovisor_guest::Machine`]. All unsafe code of the project lives in this crate.

pub mod accelerator;
pub mod memory;
mod ram;
