use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A disk of a microVM, of 512-byte sectors. The first one is called `d0`, the next `d1`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskConfig {
    /// A raw image that the disk begins as; it is only read, and must not change. None: zeros.
    pub base: Option<PathBuf>,
    /// Bytes, a multiple of 512; past the end of the base there are zeros. None: as the base.
    pub size_bytes: Option<u64>,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The folder that holds what the guest writes, in a file without a name that ends with the machine. What is
    /// written takes room there, and so does what kept states had before.
    pub changes_dir: PathBuf,
}
