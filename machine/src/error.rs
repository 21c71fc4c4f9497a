use std::path::PathBuf;

/// Why QEMU's monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("cannot connect to QEMU's monitor socket {}: {source}", path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("QEMU does not greet on {}", path.display())]
    Busy { path: PathBuf },
    #[error("{0}")]
    Closed(String),
    #[error("QEMU did not answer `{doing}` in time")]
    Timeout { doing: String },
    #[error("QEMU refused `{command}`: {description}")]
    Refused { command: String, description: String },
    #[error("QEMU's monitor spoke otherwise than expected: {0}")]
    Protocol(String),
}
