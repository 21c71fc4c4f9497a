//! Reads a Linux guest from its memory alone.
//!
//! No agent in the guest, no symbol file, no profile: the inputs are a [`MemoryView`](retrovisor_guest::MemoryView) and
//! the vCPUs' registers, and the result is facts. Everything in memory was written by the guest and is checked:
//! pointers, lengths and counts. Loops are bounded, also on cyclic structures.
#![forbid(unsafe_code)]

mod blocks;
mod boot;
mod btf;
mod difference;
mod dump;
mod error;
pub mod fact;
mod facts;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod image;
mod introspector;
mod kallsyms;
mod kernel;
mod library;
mod linux;
mod name_index;
mod observation;
mod owner;
mod pages;
mod paging;
mod printable;
mod probe;
mod question;
mod questions;
mod reader;
mod roots;
mod section;
mod symbols;
#[cfg(test)]
mod synthetic;
mod syscall_sites;
mod vmcoreinfo;

pub use btf::{Member, Shape};
pub use difference::{ChangedFrame, Difference, FieldChange, GroupChange, ObjectChange, compare};
pub use dump::RawDump;
pub use error::Error;
pub use facts::Linux;
pub use introspector::Introspector;
pub use kernel::Kernel;
pub use library::KernelLibrary;
pub use linux::counters::computed_counters;
pub use observation::Observation;
pub use owner::{Mapper, OwnerMap, OwnerReader, PageOwner, Share};
pub use paging::AddressSpace;
pub use question::{Question, Select};
pub use questions::{question, questions};
pub use syscall_sites::{CallSite, Site, SyscallSites};
