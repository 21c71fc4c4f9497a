use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The storage of packs. Tests use one that fails, or that loses unsynced data.
pub(crate) trait PackStorage: Send + Sync {
    /// The numbers of the packs there are, ascending.
    fn list(&self) -> io::Result<Vec<u32>>;
    /// A new, empty pack.
    fn create(&self, number: u32) -> io::Result<Arc<dyn PackFile>>;
    /// A pack that is there.
    fn open(&self, number: u32, write: bool) -> io::Result<Arc<dyn PackFile>>;
    /// Removes a pack.
    fn remove(&self, number: u32) -> io::Result<()>;
    /// Waits until created and removed names are on the disk.
    fn sync_names(&self) -> io::Result<()>;
    /// The name of a pack in messages.
    fn path(&self, number: u32) -> PathBuf;
}

/// One pack's bytes.
pub(crate) trait PackFile: Send + Sync {
    /// Fills `into` from `offset`.
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts off what is past `bytes`.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Waits until all that was written is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// Packs as files of one directory: `000001.pack`.
pub(crate) struct Directory {
    dir: PathBuf,
}

impl Directory {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

impl PackStorage for Directory {
    fn list(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            numbers.extend(
                name.to_str().and_then(|n| n.strip_suffix(".pack")).and_then(|n| n.parse::<u32>().ok()),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&self, number: u32) -> io::Result<Arc<dyn PackFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Arc::new(options.open(self.path(number))?))
    }

    fn open(&self, number: u32, write: bool) -> io::Result<Arc<dyn PackFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(write).open(self.path(number))?))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        std::fs::remove_file(self.path(number))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:06}.pack"))
    }
}

impl PackFile for File {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
