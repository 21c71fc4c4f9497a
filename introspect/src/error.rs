use std::path::PathBuf;

use retrovisor_guest::{LayoutError, MemoryError};

/// Why something could not be read from a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No consistent kernel was found.
    #[error("no Linux kernel can be read from this memory: {0}")]
    NoKernel(String),
    /// The kernel has no such symbol.
    #[error("this kernel has no symbol {0}: look for its name of today in the guest's /proc/kallsyms")]
    NoSymbol(String),
    /// The address is not mapped, or its page tables or bytes cannot be read.
    #[error("the guest's kernel has nothing mapped at {virt:#018x}, or the page there cannot be read")]
    Unmapped {
        /// The virtual address.
        virt: u64,
    },
    /// The kernel has no system call of this number.
    #[error("this kernel has no system call {0}: numbers are in the guest's <asm/unistd_64.h>")]
    NoSyscall(u32),
    /// Reading guest memory failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A dump file cannot be used.
    #[error("cannot read the dump {path}: {source}")]
    Dump {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// A dump file's size is not a valid memory size.
    #[error("the dump {path} is no flat memory image: {source}")]
    DumpSize {
        /// The file.
        path: PathBuf,
        /// What is wrong with its size.
        source: LayoutError,
    },
}
