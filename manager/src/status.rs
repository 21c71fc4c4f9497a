use std::path::PathBuf;

use retrovisor_guest::{DirtyFinder, ProcessIdentity};
use retrovisor_snapshot::AuditStatus;

use crate::lifecycle::Lifecycle;

/// The status of a machine.
#[derive(Clone, Debug)]
pub struct MachineStatus {
    /// Its state.
    pub state: Lifecycle,
    /// Why it is in this state, in words; empty when there is nothing to add.
    pub reason: String,
    /// Why the newest automatic checkpoint was not taken; empty when it was.
    pub checkpoint_error: String,
    /// Interval between automatic checkpoints; 0 for none.
    pub every_ms: u32,
    /// The process that it runs in, or ran in last.
    pub process: Option<ProcessIdentity>,
    /// The socket of its first serial port.
    pub console: Option<PathBuf>,
    /// The file that keeps what the guest writes there.
    pub console_log: Option<PathBuf>,
    /// How dirty pages are found, and why so; `None` when it does not run.
    pub dirty_finder: Option<DirtyFinder>,
    /// How its process is confined, in words; empty when Retrovisor did not start it.
    pub confinement: String,
    /// How much of its memory is proven to be what its checkpoints say; `None` before the first checkpoint.
    pub audit: Option<AuditStatus>,
    /// Whether the links of its network interfaces are up, in order.
    pub links: Vec<bool>,
}

impl MachineStatus {
    /// Of a machine that has no actor.
    pub(crate) fn without_actor(
        state: Lifecycle,
        reason: impl Into<String>,
        every_ms: u32,
        process: Option<ProcessIdentity>,
    ) -> Self {
        Self {
            state,
            reason: reason.into(),
            checkpoint_error: String::new(),
            every_ms,
            process,
            console: None,
            console_log: None,
            dirty_finder: None,
            confinement: String::new(),
            audit: None,
            links: Vec::new(),
        }
    }
}
