//! Disks of a microVM: a base image that is only read, and above it what the guest wrote, block by block, with every
//! captured state of it.

mod base;
mod block_map;
mod changes;
mod config;
mod delta;
mod history;
mod overlay;
mod set;
mod slot_file;
#[cfg(test)]
mod tests;

pub use config::DiskConfig;
pub(crate) use overlay::{Overlay, SharedOverlay};
pub(super) use set::DiskSet;
