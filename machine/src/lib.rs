//! Drivers of virtual machines: stock QEMU, and a microVM on KVM.
//!
//! A driver implements [`retrovisor_guest::Machine`]. All unsafe code of the project is in this crate.

pub mod accelerator;
mod drivers;
mod error;
mod heaps;
pub mod kvm;
mod process;
pub mod qemu;
mod ram;
mod socket_path;

pub use drivers::drivers;
pub use heaps::limit_heaps;
