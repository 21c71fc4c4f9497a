use retrovisor_snapshot::CheckpointId;

/// Why a query about checkpoints failed.
#[derive(Debug, thiserror::Error)]
pub enum AnalyticsError {
    /// The snapshot database could not be read, or rejected the query.
    #[error("cannot read the snapshot database: {0}")]
    Store(#[from] retrovisor_snapshot::Error),
    /// The checkpoint has no facts: introspection has not read it.
    #[error(
        "checkpoint {checkpoint} has no facts; let introspection read it first (`retrovisor inspect --at {checkpoint}`)"
    )]
    NoFacts {
        /// The requested checkpoint.
        checkpoint: CheckpointId,
    },
    /// The checkpoint is not in the history of its machine.
    #[error("checkpoint {checkpoint} is not in the history; `retrovisor log` lists those that are")]
    NoCheckpoint {
        /// The requested checkpoint.
        checkpoint: CheckpointId,
    },
    /// A report could not be written as JSON.
    #[error("cannot write the report as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, AnalyticsError>;
