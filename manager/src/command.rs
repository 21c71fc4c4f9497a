use retrovisor_snapshot::{CheckpointId, CheckpointRecord, RollbackRequest};
use tokio::sync::oneshot::Sender;

use crate::error::ManagerError;
use crate::inject::Fault;
use crate::rollback::Rollback;

/// Where the answer to a command is sent.
pub type Reply<T> = Sender<Result<T, ManagerError>>;

/// What the actor of a machine can be asked. Sent with [`Manager::ask`](crate::Manager::ask).
pub enum Command {
    /// Take a checkpoint now.
    Checkpoint {
        /// The label that it gets.
        label: Option<String>,
        /// The checkpoint, durable and evaluated.
        reply: Reply<CheckpointRecord>,
    },
    /// Go to a checkpoint.
    Rollback {
        /// The checkpoint.
        target: CheckpointId,
        /// Whether memory is hashed and compared before the guest runs on.
        verify_image: bool,
        /// Clock policy and what becomes of the current state.
        request: RollbackRequest,
        /// What was done.
        reply: Reply<Rollback>,
    },
    /// Undo the last rollback.
    Undo {
        /// Whether memory is hashed and compared before the guest runs on.
        verify_image: bool,
        /// What was done.
        reply: Reply<Rollback>,
    },
    /// Undo the last undo.
    Redo {
        /// What was done.
        reply: Reply<Rollback>,
    },
    /// Stop the vCPUs.
    Pause {
        /// Sent when they are stopped.
        reply: Reply<()>,
    },
    /// Let the vCPUs run.
    Resume {
        /// Sent when they run.
        reply: Reply<()>,
    },
    /// Take a last checkpoint and end the machine's process.
    Stop {
        /// Sent when the process is gone.
        reply: Reply<()>,
    },
    /// Inject a fault.
    Inject {
        /// The fault.
        fault: Fault,
        /// What was done, in words, and the name of the operation.
        reply: Reply<(String, String)>,
    },
    /// End the actor, not the machine.
    Detach,
}
