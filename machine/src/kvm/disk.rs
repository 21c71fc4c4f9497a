//! Disks of a microVM: a base image that is never written, and above it the guest's writes, block by block, with every
//! captured state.

mod base;
mod block_map;
mod blocks;
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
