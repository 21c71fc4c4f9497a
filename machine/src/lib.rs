//! Drivers of virtual machines: stock QEMU, our own microVM on KVM, and a memory-only machine for tests.
//!
//! A driver implements [`retrovisor_guest::Machine`]. All unsafe code of the project lives in this crate.

pub mod accelerator;
mod drivers;
mod error;
pub mod kvm;
pub mod memory;
mod process;
pub mod qemu;
mod ram;
mod socket_path;

pub use drivers::drivers;
