use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use retrovisor_guest::{BLOCK_SIZE, MachineError};

/// A file without a name, divided into slots of one block each.
pub(super) struct SlotFile {
    file: Arc<File>,
    free: Vec<u32>,
    /// Slots from here on were never used.
    unused: u32,
}

impl SlotFile {
    /// An empty one in a folder.
    pub(super) fn new(dir: &Path) -> Result<Self, MachineError> {
        let file = nameless(dir).map_err(|source| MachineError::Io {
            doing: format!("making a file for a disk's changes in {}", dir.display()),
            source,
        })?;
        Ok(Self { file: Arc::new(file), free: Vec::new(), unused: 0 })
    }

    /// The file, for reading while slots are written: slots in use do not change.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// A free slot.
    pub(super) fn take(&mut self) -> io::Result<u32> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = self.unused;
        self.unused = slot.checked_add(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(slot)
    }

    /// Frees slots.
    pub(super) fn give_back(&mut self, slots: &mut Vec<u32>) {
        self.free.append(slots);
    }

    /// Slots in use.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.unused as usize - self.free.len()
    }

    /// Writes consecutive slots.
    pub(super) fn write(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset(first))
    }
}

/// Reads from a slot on, which may continue into the next ones.
pub(super) fn read(file: &File, first: u32, skipped: usize, into: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(into, offset(first) + skipped as u64)
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * BLOCK_SIZE as u64
}

fn nameless(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        // Not every file system supports files without a name.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        file => return file,
    }
    let mut number = [0; 8];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
    let path = dir.join(format!(".retrovisor-{:016x}", u64::from_ne_bytes(number)));
    let file = options.create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
