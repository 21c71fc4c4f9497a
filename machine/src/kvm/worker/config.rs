use std::ffi::OsString;
use std::path::PathBuf;

use super::confine::Limits;
use crate::kvm::config::KvmConfig;

/// Which machine to start in a worker process, and how.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The machine. Its memory begins fresh, whatever is given here.
    pub machine: KvmConfig,
    /// The program that becomes the worker: it calls [`super::worker_process`] first thing.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where the machine has its sockets and logs. For the owner alone.
    pub runtime_dir: PathBuf,
    /// Whether it does not boot, but waits to be given memory and [`retrovisor_guest::StateIo::apply_state`].
    pub awaits_state: bool,
    /// Whether the worker continues when this process ends or drops the machine.
    pub detached: bool,
    /// What the worker is left with.
    pub limits: Limits,
}
