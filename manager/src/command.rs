use retrovisor_snapshot::{AuditReport, CheckpointId, CheckpointRecord, RollbackRequest};
use tokio::sync::oneshot::Sender;

use crate::error::ManagerError;
use crate::inject::Fault;
use crate::lifecycle::{CommandKind, PausedBy};
use crate::rollback::Rollback;

/// Where the answer to a command is sent.
pub type Reply<T> = Sender<Result<T, ManagerError>>;

/// What the actor of a machine can be asked. Sent with [`Manager::ask`](crate::Manager::ask).
///
/// [`rule`](crate::rule) says in which states a command is executed, and to which state it leads. A command that fails
/// leaves the machine as it was, unless its comment says otherwise.
pub enum Command {
    /// Take a checkpoint now.
    Checkpoint {
        /// The label that it gets.
        label: Option<String>,
        /// The checkpoint, durable and evaluated.
        reply: Reply<CheckpointRecord>,
    },
    /// Compare the whole memory with the newest checkpoint, piece by piece, each in a pause of its own. No checkpoint is taken
    /// meanwhile.
    Audit {
        /// What was compared, and what differs.
        reply: Reply<AuditReport>,
    },
    /// Go to a checkpoint. If the memory can neither be written nor reverted, the machine is
    /// [`Failed`](crate::Lifecycle::Failed) afterwards.
    Rollback {
        /// The checkpoint.
        target: CheckpointId,
        /// Whether memory is hashed and compared before the guest runs on. If it differs, the guest does not run on with it:
        /// the state before is brought back, an incident is opened, and the answer is an error.
        verify_image: bool,
        /// Clock policy and what becomes of the current state.
        request: RollbackRequest,
        /// What was done.
        reply: Reply<Rollback>,
    },
    /// Undo the last rollback; otherwise as a rollback.
    Undo {
        /// As for a rollback.
        verify_image: bool,
        /// What was done.
        reply: Reply<Rollback>,
    },
    /// Undo the last undo; otherwise as a rollback.
    Redo {
        /// As for a rollback.
        verify_image: bool,
        /// What was done.
        reply: Reply<Rollback>,
    },
    /// Stop the vCPUs. They stay stopped over a restart of the daemon.
    Pause {
        /// Who asks.
        by: PausedBy,
        /// Sent when they are stopped.
        reply: Reply<()>,
    },
    /// Let the vCPUs run.
    Resume {
        /// Sent when they run.
        reply: Reply<()>,
    },
    /// Take a last checkpoint and end the machine's process. If the checkpoint fails, the machine runs on and stays
    /// managed.
    Stop {
        /// End the process also when the last checkpoint fails.
        force: bool,
        /// Sent when the process is gone.
        reply: Reply<()>,
    },
    /// Inject a fault. A command line for the guest is typed by a thread of its own within one deadline: checkpoints and
    /// other commands go on meanwhile.
    Inject {
        /// The fault.
        fault: Fault,
        /// What was done, in words, and the name of the operation.
        reply: Reply<(String, String)>,
    },
    /// Change the interval between automatic checkpoints.
    Set {
        /// The interval in milliseconds; 0 for none.
        every_ms: u32,
        /// Sent when it is in effect.
        reply: Reply<()>,
    },
    /// Give the process back as it was found and end its management. It is not attached again after a restart of the
    /// daemon.
    Detach {
        /// What could not be removed from the process, in words.
        reply: Reply<Vec<String>>,
    },
    /// End the actor, not the machine: the daemon ends.
    #[doc(hidden)]
    Shutdown,
}

impl Command {
    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Checkpoint { reply, .. } => reply.is_closed(),
            Self::Audit { reply } => reply.is_closed(),
            Self::Rollback { reply, .. } | Self::Undo { reply, .. } | Self::Redo { reply, .. } => {
                reply.is_closed()
            }
            Self::Pause { reply, .. }
            | Self::Resume { reply }
            | Self::Stop { reply, .. }
            | Self::Set { reply, .. } => reply.is_closed(),
            Self::Inject { reply, .. } => reply.is_closed(),
            Self::Detach { reply } => reply.is_closed(),
            Self::Shutdown => false,
        }
    }

    /// Its kind; `None` for what no user asks.
    #[must_use]
    pub fn kind(&self) -> Option<CommandKind> {
        Some(match self {
            Self::Checkpoint { .. } => CommandKind::Checkpoint,
            Self::Audit { .. } => CommandKind::Audit,
            Self::Rollback { .. } => CommandKind::Rollback,
            Self::Undo { .. } => CommandKind::Undo,
            Self::Redo { .. } => CommandKind::Redo,
            Self::Pause { .. } => CommandKind::Pause,
            Self::Resume { .. } => CommandKind::Resume,
            Self::Stop { force: false, .. } => CommandKind::Stop,
            Self::Stop { force: true, .. } => CommandKind::ForceStop,
            Self::Inject { fault: Fault::ConsoleCommand { .. }, .. } => CommandKind::InjectCommand,
            Self::Inject { .. } => CommandKind::Inject,
            Self::Set { .. } => CommandKind::Set,
            Self::Detach { .. } => CommandKind::Detach,
            Self::Shutdown => return None,
        })
    }
}
