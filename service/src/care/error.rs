use retrovisor_guest::MachineError;

/// Why care for a machine failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CareError {
    /// A live machine has that name.
    #[error("a machine named {machine} is under care already")]
    Exists { machine: String },
    /// The store has a machine of that name.
    #[error("the store knows a machine named {machine} already")]
    Known { machine: String },
    /// The machine is known, but nobody keeps it.
    #[error("machine {machine} does not run")]
    Gone { machine: String },
    /// A precondition does not hold.
    #[error("{what}")]
    Refused { what: String, help: String },
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
    Io { doing: String, source: std::io::Error },
}
