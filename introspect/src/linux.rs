//! Readers of the kernel's own structures: one file a subject.

pub(crate) mod areas;
pub(crate) mod counters;
pub(crate) mod dispatch;
pub(crate) mod frames;
pub(crate) mod free_lists;
pub(crate) mod identity;
pub(crate) mod log;
mod maple;
pub(crate) mod modules;
pub(crate) mod patching;
pub(crate) mod paths;
pub(crate) mod protections;
pub(crate) mod resources;
pub(crate) mod sections;
pub(crate) mod slabs;
pub(crate) mod syscalls;
pub(crate) mod tasks;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod vmalloc;
pub(crate) mod xarray;
