//! Readers of the kernel's own structures: one file a subject.

pub(crate) mod counters;
pub(crate) mod dispatch;
pub(crate) mod frames;
pub(crate) mod identity;
pub(crate) mod log;
pub(crate) mod modules;
pub(crate) mod patching;
pub(crate) mod protections;
pub(crate) mod syscalls;
pub(crate) mod tasks;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod xarray;
