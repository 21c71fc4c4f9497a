use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A disk of a microVM, of 512-byte sectors. The first one is called `d0`, the next `d1`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskConfig {
    /// The raw image from which the disk starts; it is never written, and must not change. `None`: zeros.
    pub base: Option<PathBuf>,
    /// Bytes, a multiple of 512; past the end of the base there are zeros. `None`: as the base.
    pub size_bytes: Option<u64>,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The folder for the guest's writes, which are in a file without a name that disappears with the machine. It holds
    /// written blocks, and the blocks of captured states.
    pub changes_dir: PathBuf,
}
