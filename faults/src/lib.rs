//! Fault models: how to change a guest's memory from outside.
//!
//! A [`Fault`] is a kind of fault with parameters. It is planned against a checkpoint, while the guest runs, which
//! gives a [`Plan`]: the bytes to write, their frames, and a description. A plan is applied to the machine in one pause
//! and can be undone. [`all`] is the registry; `docs/analytics.md` describes how to add one.
#![forbid(unsafe_code)]

mod bit_flip;
mod error;
mod fault;
mod patch;
mod plan;
mod syscall_redirect;
mod target;

pub use error::Error;
pub use fault::{Arguments, Fault, Parameter, all, find};
pub use patch::Patch;
pub use plan::Plan;
pub use target::Target;
