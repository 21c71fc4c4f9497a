use std::path::PathBuf;

use nix::errno::Errno;

/// Why a request to QEMU's monitor failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("cannot connect to QEMU's monitor socket {}: {source}", path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("another client is connected to QEMU's monitor socket {}", path.display())]
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

/// Why write protection could not be registered in a running process, or removed from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    #[error(
        "tracing QEMU's process is not permitted: it takes its user and kernel.yama.ptrace_scope=0, or root"
    )]
    NotPermitted,
    #[error("process {tracer} is tracing QEMU's process")]
    Traced { tracer: u32 },
    #[error("QEMU's system calls are filtered (seccomp, `-sandbox on`)")]
    Filtered,
    #[error("QEMU is a child of this process")]
    OwnChild,
    #[error("QEMU's main thread does not make 64-bit system calls")]
    OtherAbi,
    #[error("QEMU's main thread was never found waiting in a system call")]
    Busy,
    #[error("QEMU's main thread did not stop within a second")]
    NoStop,
    #[error("QEMU's process ended")]
    Ended,
    #[error("QEMU's process was refused {name} ({})", errno.desc())]
    Refused { name: &'static str, errno: Errno },
    #[error("{doing} failed ({})", errno.desc())]
    Trace { doing: &'static str, errno: Errno },
    #[error("what the kernel says of QEMU's process cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("the tracing thread panicked")]
    Panicked,
}
