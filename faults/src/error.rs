use retrovisor_guest::{Gpa, MachineError, MemoryError};

/// Why a fault could not be planned or applied. The guest's memory is unchanged, unless the machine refused the writes
/// that restore it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such kind of fault.
    #[error("there is no fault `{0}`; `retrovisor inject NAME list` shows those that there are")]
    NoSuchFault(String),
    /// A parameter of a fault is missing, unknown or has an invalid value.
    #[error("parameter `{name}` {problem}")]
    Parameter {
        /// The parameter.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel has no such symbol.
    #[error("the guest's kernel has no symbol `{0}`; its own list is /proc/kallsyms")]
    NoSuchSymbol(String),
    /// The kernel has no such system call.
    #[error(
        "the guest's kernel has no system call `{0}`. Name one as in `man 2 syscalls`: getppid, getuid, openat"
    )]
    NoSuchSyscall(String),
    /// The replacement is too far away for a near call.
    #[error("the call at {at:#x} cannot reach {target:#x}")]
    OutOfReach {
        /// Guest-virtual address of the call.
        at: u64,
        /// Guest-virtual address of the replacement.
        target: u64,
    },
    /// The call's operand spans two frames.
    #[error("the call at {0:#x} spans two pages; redirect another system call")]
    Split(u64),
    /// The memory differs from the plan's.
    #[error("the bytes at {0} changed since the fault was planned; try again")]
    Changed(Gpa),
    /// The guest's kernel could not be read.
    #[error("the guest's kernel cannot be read: {0}")]
    Kernel(#[from] retrovisor_introspect::Error),
    /// Guest memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Applying failed, and the machine did not accept the state that it had before: it must not run before it is given
    /// one.
    #[error("the machine does not accept its state any more: {0}")]
    NotReverted(#[source] MachineError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}
