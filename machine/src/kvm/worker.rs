//! A microVM in a process of its own.
//!
//! The *worker* process has the virtual machine, its vCPU threads and its devices, and no access to the store. The
//! process that manages the machine has a [`RemoteMachine`]: the guest's memory is a sealed memfd that both map, and
//! everything else goes as messages over a Unix socket in the machine's runtime directory. The worker outlives the
//! managing process; the next one connects to that socket.
//!
//! The guest may take control of the worker, so its replies are bounded and checked, and it is confined before the
//! guest's first instruction ([`confine`]).

mod blocks;
mod changes;
mod channel;
mod config;
mod confine;
mod console;
mod console_log;
mod failure;
mod launch;
mod link;
mod message;
mod peer;
mod process;
mod readers;
mod remote;
mod runtime;
mod serve;

pub use config::RemoteConfig;
pub use confine::{Confinement, Limits};
pub use process::run as worker_process;
pub use remote::RemoteMachine;
