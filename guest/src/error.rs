use crate::{Gpa, LayoutError};

/// Why guest memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The address is not RAM of this machine.
    #[error("guest-physical address {gpa} is not memory of this machine")]
    NotMemory {
        /// The address asked for.
        gpa: Gpa,
    },
    /// The source has the page, but its bytes are damaged or missing. The message names the place.
    #[error("{0}")]
    Damaged(String),
    /// Reading failed on the host.
    #[error("cannot read guest memory: {0}")]
    Host(#[from] std::io::Error),
}

/// Why a machine could not execute a call. If there is something to do, the message says what.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The process or VM of the machine is gone.
    #[error("machine {machine} is gone: {reason}")]
    Gone {
        /// The machine's name.
        machine: String,
        /// What was observed: exit status, closed socket.
        reason: String,
    },
    /// The driver, or this host, cannot do this.
    #[error("{what} is not supported here. {help}")]
    Unsupported {
        /// The call.
        what: String,
        /// What to do instead.
        help: String,
    },
    /// The state is not compatible with this machine (other layout, vCPU count, version, CPU).
    #[error("the state does not fit this machine: {what}: expected {expected}, found {found}")]
    Mismatch {
        /// Which property.
        what: String,
        /// What the state was taken with.
        expected: String,
        /// What the machine has.
        found: String,
    },
    /// The call needs the machine paused (or running), and it is not.
    #[error("{doing} needs a {needed} machine")]
    RunState {
        /// The call.
        doing: &'static str,
        /// `paused`, `running` or `restored`.
        needed: &'static str,
    },
    /// The configuration is not usable: a missing file, an impossible size.
    #[error("{what}. {help}")]
    Config {
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// The peer (VMM, kernel interface) returned an error or did not respond.
    #[error("{doing}: {message}")]
    Driver {
        /// The action that failed.
        doing: String,
        /// The peer's message.
        message: String,
    },
    /// The host failed an operation.
    #[error("{doing}: {source}")]
    Io {
        /// The action that failed, with the path.
        doing: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The memory layout is impossible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest memory could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
