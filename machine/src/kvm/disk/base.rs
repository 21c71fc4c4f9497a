use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use retrovisor_guest::{BaseFile, DiskBase, MachineError};

/// The first bytes of a QEMU image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The raw image under a disk, open for reading.
pub(super) struct Base {
    file: File,
    length_bytes: u64,
    identity: DiskBase,
}

impl Base {
    pub(super) fn open(path: &Path) -> Result<Self, MachineError> {
        let io =
            |source| MachineError::Io { doing: format!("opening the disk image {}", path.display()), source };
        let file = File::open(path).map_err(io)?;
        let found = file.metadata().map_err(io)?;
        if !found.is_file() {
            return Err(MachineError::Config {
                what: format!("{} is not a regular file", path.display()),
                help: "Give the path of a raw disk image".into(),
            });
        }
        let mut magic = [0; 4];
        if found.len() >= 4 && file.read_exact_at(&mut magic, 0).is_ok() && magic == QCOW2_MAGIC {
            return Err(MachineError::Config {
                what: format!("{} is a qcow2 image, and a microVM reads raw ones", path.display()),
                help: "Convert it: qemu-img convert -O raw IN OUT".into(),
            });
        }
        let path = path.canonicalize().map_err(io)?;
        let file_identity = BaseFile {
            path: path.display().to_string(),
            length_bytes: found.len(),
            modified_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
        };
        Ok(Self { file, length_bytes: found.len(), identity: DiskBase { files: vec![file_identity] } })
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    pub(super) fn identity(&self) -> &DiskBase {
        &self.identity
    }

    /// Reads from `offset` on into `into`; past the end are zeros.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.length_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (within, past) = into.split_at_mut(there.min(into.len()));
        past.fill(0);
        self.file.read_exact_at(within, offset)
    }
}
