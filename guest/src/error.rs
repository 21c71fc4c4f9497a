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
    /// The source holds the page but its bytes are damaged or gone. The message names the place.
    #[error("{0}")]
    Damaged(String),
    /// Reading failed on the host.
    #[error("cannot read guest memory: {0}")]
    Host(#[from] std::io::Error),
}

/// Why a machine could not do what it was asked. Every message says what to do next where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The process or VM behind the machine is gone.
    #[error("machine {machine} is gone: {reason}")]
    Gone {
        /// The machine's name.
        machine: String,
        /// What was seen: exit status, closed socket.
        reason: String,
    },
    /// The driver, or this host, cannot do this.
    #[error("{what} is not supported here. {help}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// The way out.
        help: String,
    },
    /// A state does not belong to this machine (other layout, vCPU count, version, CPU).
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
        /// What was asked.
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
    /// The peer (VMM, kernel interface) answered with an error or not at all.
    #[error("{doing}: {message}")]
    Driver {
        /// What was being done.
        doing: String,
        /// The peer's words.
        message: String,
    },
    /// The host failed an operation.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
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
