use std::path::PathBuf;

use retrovisor_guest::RunState;
use retrovisor_snapshot::{CheckpointId, CheckpointRecord, RollbackRequest};
use tokio::sync::oneshot::Sender;

use super::error::CareError;
use super::inject::Fault;

type Reply<T> = Sender<Result<T, CareError>>;

/// What a keeper can be asked.
pub(crate) enum Command {
    /// Take a checkpoint now.
    Checkpoint { label: Option<String>, reply: Reply<CheckpointRecord> },
    /// Go to a checkpoint.
    Rollback { target: CheckpointId, verify_image: bool, request: RollbackRequest, reply: Reply<Journey> },
    /// Undo the last move.
    Undo { verify_image: bool, reply: Reply<Journey> },
    /// Take the last undo back.
    Redo { reply: Reply<Journey> },
    /// Stop the vCPUs.
    Pause { reply: Reply<()> },
    /// Let them run.
    Resume { reply: Reply<()> },
    /// Checkpoint a last time and end the VM.
    Stop { reply: Reply<()> },
    /// Hurt the guest; what was done, in words, and the operation's name.
    Inject { fault: Fault, reply: Reply<(String, String)> },
    /// End the keeper, not the VM.
    LetGo,
}

/// Which way to go.
pub(super) enum Way {
    Rollback(CheckpointId),
    Undo,
    Redo,
}

/// A machine's way from one checkpoint to another.
#[derive(Clone, Debug)]
pub(crate) struct Journey {
    pub(crate) operation: String,
    pub(crate) present: Option<CheckpointRecord>,
    pub(crate) target: CheckpointRecord,
    pub(crate) steps: u32,
    pub(crate) pages_written: u64,
    pub(crate) rollback_us: u64,
    pub(crate) new_process: bool,
    pub(crate) image_matches: Option<bool>,
}

/// What is known of a live machine.
#[derive(Clone, Debug)]
pub(crate) struct Vitals {
    pub(crate) run_state: RunState,
    pub(crate) every_ms: u32,
    pub(crate) console: Option<PathBuf>,
    pub(crate) console_log: Option<PathBuf>,
    pub(crate) finder: String,
    /// Of its process, in words; empty when it is not ours to say.
    pub(crate) confinement: String,
    /// Whether the links of its network interfaces are up, in order.
    pub(crate) links: Vec<bool>,
}
