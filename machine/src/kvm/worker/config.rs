use std::ffi::OsString;
use std::path::PathBuf;

use super::confine::Limits;
use crate::kvm::config::KvmConfig;

/// The machine to start in a worker process, and its environment.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The machine. Its memory source is ignored: memory is always a new memfd.
    pub machine: KvmConfig,
    /// The program that becomes the worker: it calls [`super::worker_process`] first thing.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The folder for its sockets and logs, accessible to the owner only.
    pub runtime_dir: PathBuf,
    /// Whether it does not boot, but waits to be given memory and [`retrovisor_guest::StateIo::apply_state`].
    pub awaits_state: bool,
    /// Whether the worker continues when this process ends or drops the machine.
    pub detached: bool,
    /// The confinement.
    pub limits: Limits,
}
