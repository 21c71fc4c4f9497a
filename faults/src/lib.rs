//! Fault models: what to break in a guest, and how, from outside.
//!
//! A fault is first planned against a checkpoint (while the guest runs) as patches of its memory, then
//! applied to the machine in one short pause.
#![forbid(unsafe_code)]

mod error;
mod patch;
mod syscall_redirect;

pub use error::Error;
pub use patch::{Patch, apply, frames};
pub use syscall_redirect::plan as redirect_syscall;
