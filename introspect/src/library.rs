//! The symbols and types of kernels, kept in a folder for other processes.

mod entry;
mod fingerprint;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

pub(crate) use entry::Loading;
use entry::{Entry, Header};
pub(crate) use fingerprint::Extents;
use fingerprint::Fingerprint;

use crate::{btf::Types, image::ImageRange, pages::Pages, symbols::Symbols};

/// Symbols and types of known kernels, in a folder with one file for each build.
///
/// An entry is used for a kernel only when the bytes from which the entry was made are in the guest's memory, at the
/// same offsets in the kernel's image. Names and versions do not count, since any guest could claim them. The position
/// chosen by KASLR does not matter. A damaged entry is skipped and made again. Input and output errors are not
/// returned: without the folder, symbols are read from memory.
#[derive(Clone, Debug)]
pub struct KernelLibrary {
    folder: PathBuf,
    writable: bool,
    /// Entries that may still be written through this handle and its clones.
    puts_left: Arc<AtomicU32>,
}

const EXTENSION: &str = "kernel";
/// Builds that are kept, the most recently used ones, and bound on their bytes: a real entry has 10 to 14 MiB.
const ENTRIES_MAX: usize = 16;
const FOLDER_BYTES_MAX: u64 = 256 << 20;
const ENTRY_BYTES_MAX: u64 = 64 << 20;
/// Bound on the files in the folder that are examined.
const FILES_MAX: usize = 256;
/// Bound on new entries: a guest that keeps changing its symbols cannot fill the disk.
const PUTS_MAX: u32 = 8;
/// Precision of an entry's time of last use.
const USE_EXACT: Duration = Duration::from_hours(1);

impl KernelLibrary {
    /// A library in a folder, which is created with the first entry.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), writable: true, puts_left: Arc::new(PUTS_MAX.into()) }
    }

    /// A library that is only read.
    #[must_use]
    pub fn read_only(folder: &Path) -> Self {
        Self { writable: false, ..Self::new(folder) }
    }

    /// The symbols and types of the kernel in this image, if the library has them.
    pub(crate) fn find(
        &self,
        pages: &Pages,
        image: &ImageRange,
        loading: Loading,
    ) -> Option<(Symbols, Types)> {
        for path in self.entries().into_iter().map(|(_, _, path)| path).take(ENTRIES_MAX) {
            match Self::read(&path, pages, image, loading) {
                Ok(Some(found)) => {
                    self.mark_used(&path);
                    return Some(found);
                }
                Ok(None) => {}
                Err(error) => {
                    let path = path.display();
                    tracing::warn!(%path, %error, "what was kept of a kernel cannot be used: it will be read again");
                }
            }
        }
        None
    }

    /// `None` when the entry is of another kernel than the one in memory.
    fn read(
        path: &Path,
        pages: &Pages,
        image: &ImageRange,
        loading: Loading,
    ) -> io::Result<Option<(Symbols, Types)>> {
        let file = File::open(path)?;
        let Some(header) = Header::read(&file, ENTRY_BYTES_MAX)? else {
            return Err(damaged("its header is damaged, or of another version"));
        };
        let extents = header.extents();
        if Fingerprint::of_first(pages, image, &extents) != Some(header.first())
            || Fingerprint::of(pages, image, &extents) != Some(header.fingerprint())
        {
            return Ok(None);
        }
        let found = Entry::open(file, &header, image, loading)?;
        found.ok_or_else(|| damaged("its tables are damaged")).map(Some)
    }

    /// Adds the symbols and types of a kernel.
    pub(crate) fn put(
        &self,
        pages: &Pages,
        image: &ImageRange,
        extents: &Extents,
        symbols: &Symbols,
        types: &Types,
    ) {
        let left = |left: u32| left.checked_sub(1);
        if !self.writable || !symbols.can_be_kept() || !types.can_be_kept() {
            return;
        }
        let Some(fingerprint) = Fingerprint::of(pages, image, extents) else { return };
        let Some(first) = Fingerprint::of_first(pages, image, extents) else { return };
        let Some(bytes) = Entry::write(image, extents, (&fingerprint, first), symbols, types) else { return };
        if bytes.len() as u64 > ENTRY_BYTES_MAX
            || self.puts_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err()
        {
            return;
        }
        if let Err(error) = self.write(&fingerprint.name(), &bytes) {
            let folder = self.folder.display();
            tracing::warn!(%folder, %error, "a kernel's symbols cannot be kept: they will be read again");
        }
    }

    /// Writes a file completely or not at all: readers never see part of an entry. Damage after a crash is detected by
    /// the checks in the file.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Private, like everything in a store: the contents come from a guest's memory.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.make_room(bytes.len() as u64);
        let path = self.folder.join(name).with_extension(EXTENSION);
        let mut file = tempfile_in(&self.folder)?;
        let written = file.1.write_all(bytes).and_then(|()| fs::rename(&file.0, &path));
        if written.is_err() {
            // Best effort: the file is removed when the next entry is written.
            let _ = fs::remove_file(&file.0);
        }
        written
    }

    /// Removes the least recently used entries, and temporary files of writers that failed.
    fn make_room(&self, bytes: u64) {
        let mut held_bytes = bytes;
        for (number, (_, entry_bytes, path)) in self.entries().into_iter().enumerate() {
            held_bytes = held_bytes.saturating_add(entry_bytes);
            if number + 1 >= ENTRIES_MAX || held_bytes > FOLDER_BYTES_MAX {
                // Another process may have removed it.
                let _ = fs::remove_file(path);
            }
        }
        for file in fs::read_dir(&self.folder).into_iter().flatten().flatten().take(FILES_MAX) {
            let path = file.path();
            let old = file.metadata().and_then(|file| file.modified()).is_ok_and(is_past);
            if old && path.extension().is_some_and(|extension| extension == "tmp") {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Time of last use, bytes and path of each entry, the most recently used first.
    fn entries(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten().take(FILES_MAX);
        let paths = files.map(|file| file.path());
        let entries = paths.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
        let mut entries: Vec<_> = entries
            .filter_map(|path| {
                let file = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
                Some((file.modified().ok()?, file.len(), path))
            })
            .collect();
        entries.sort_by(|one, other| (Reverse(one.0), &one.2).cmp(&(Reverse(other.0), &other.2)));
        entries
    }

    fn mark_used(&self, path: &Path) {
        let used = fs::metadata(path).and_then(|file| file.modified());
        if self.writable && used.is_ok_and(is_past) {
            // The order only predicts future use; a lost timestamp costs time, no data.
            let _ =
                File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
        }
    }
}

fn is_past(time: SystemTime) -> bool {
    time.elapsed().is_ok_and(|age| age > USE_EXACT)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A new file that no other process writes.
fn tempfile_in(folder: &Path) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("{}-{number}.tmp", std::process::id()));
    // The temporary file of an earlier process with the same id.
    let _ = fs::remove_file(&path);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((path, file))
}
