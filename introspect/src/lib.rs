//! Reads a Linux guest from its memory alone.
//!
//! No agent in the guest, no symbol file, no profile: a [`MemoryView`](retrovisor_guest::MemoryView) and the vCPUs'
//! registers go in, facts come out. Everything read was written by the guest and is checked: pointers, lengths and
//! counts; loops are bounded, cycles end.
#![forbid(unsafe_code)]

mod btf;
mod dump;
mod error;
pub mod fact;
mod hash;
mod image;
mod kallsyms;
mod kernel;
mod pages;
mod paging;
mod printable;
mod reader;
mod symbols;
#[cfg(test)]
mod synthetic;
mod vmcoreinfo;

pub use dump::RawDump;
pub use error::Error;
pub use kernel::Kernel;
pub use paging::AddressSpace;
