use retrovisor_guest::{MachineError, NameError};

use crate::lifecycle::{CommandKind, Lifecycle, help};
use crate::status::MachineStatus;

/// Why a machine could not be managed, or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A machine of that name has an actor.
    #[error("a machine named {machine} is managed already")]
    Exists {
        /// Its name.
        machine: String,
    },
    /// The store has a machine of that name.
    #[error("the store has a machine named {machine} already")]
    Known {
        /// Its name.
        machine: String,
    },
    /// The store has the machine, but it has no actor.
    #[error("machine {machine} does not run")]
    Gone {
        /// Its name.
        machine: String,
    },
    /// The machine's state does not allow the command.
    #[error("{machine} is {state}{reason}: `{command}` is not possible")]
    State {
        /// Its name.
        machine: String,
        /// Its state.
        state: Lifecycle,
        /// Why it is in that state: empty, or in parentheses.
        reason: String,
        /// The command.
        command: CommandKind,
        /// What to do instead.
        help: String,
    },
    /// The last checkpoint before a stop failed: the machine goes on and stays managed.
    #[error("{machine} was not stopped, because its last checkpoint failed: {source}")]
    NotStopped {
        /// Its name.
        machine: String,
        /// Why the checkpoint failed.
        source: Box<ManagerError>,
    },
    /// After a rollback, the memory did not have the hash of the checkpoint.
    #[error(
        "the memory of {machine} did not have the hash of checkpoint {checkpoint} after going there; {}",
        if *is_reverted { "the state before was brought back" } else { "its guest does not run" }
    )]
    ImageMismatch {
        /// Its name.
        machine: String,
        /// The checkpoint's name.
        checkpoint: String,
        /// Whether the state before was brought back.
        is_reverted: bool,
    },
    /// The machine's actor ended before it answered.
    #[error("{machine} did not finish the command: it is {state} now{reason}")]
    Unanswered {
        /// Its name.
        machine: String,
        /// Its state now.
        state: Lifecycle,
        /// Why: empty, or in parentheses.
        reason: String,
    },
    /// The history of that name was recorded from a machine of another shape.
    #[error("{machine} has {recorded} in its history, and not {wanted}")]
    Shape {
        /// Its name.
        machine: String,
        /// What was recorded.
        recorded: String,
        /// What was asked for.
        wanted: String,
    },
    /// The process is managed under another name.
    #[error("process {pid} is managed already: it is {machine}")]
    Managed {
        /// Its number.
        pid: i32,
        /// The name of the machine that it is.
        machine: String,
    },
    /// A precondition does not hold.
    #[error("{what}")]
    Refused {
        /// What cannot be done, and why.
        what: String,
        /// What to do instead.
        help: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] retrovisor_snapshot::Error),
    /// The virtual machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The statistics failed.
    #[error(transparent)]
    Analytics(#[from] retrovisor_analytics::AnalyticsError),
    /// The fault could not be made.
    #[error(transparent)]
    Fault(#[from] retrovisor_faults::Error),
    /// The host failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl From<NameError> for ManagerError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl ManagerError {
    /// A command that the machine's state does not allow.
    pub(crate) fn refused(machine: &str, status: &MachineStatus, command: CommandKind) -> Self {
        let state = status.state;
        let machine = machine.to_owned();
        match command {
            CommandKind::Run | CommandKind::Attach if state.has_actor() || state == Lifecycle::Starting => {
                Self::Exists { machine }
            }
            _ if state == Lifecycle::Gone => Self::Gone { machine },
            _ => {
                let help = help(state, command, &machine);
                Self::State { machine, state, reason: in_parentheses(&status.reason), command, help }
            }
        }
    }

    /// The actor ended before it answered.
    pub(crate) fn unanswered(machine: &str, status: &MachineStatus) -> Self {
        let reason = in_parentheses(&status.reason);
        Self::Unanswered { machine: machine.to_owned(), state: status.state, reason }
    }
}

fn in_parentheses(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}
