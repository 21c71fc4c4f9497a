use retrovisor_guest::{MachineError, NameError};

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
