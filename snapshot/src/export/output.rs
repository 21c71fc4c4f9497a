use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::id::fresh_name;

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A file that exists as a whole, or not at all: it gets its name when it is complete.
pub(super) struct Output {
    path: PathBuf,
    partial: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Output {
    /// Begins a file that is accessible to its owner only. No file of this name may exist.
    pub(super) fn begin(path: &Path) -> Result<Self> {
        if path.exists() {
            return Err(Error::Exists { what: "the file", name: path.display().to_string() });
        }
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let partial = path.with_file_name(format!(".{name}.{}", fresh_name()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(Error::io("creating", &partial))?;
        Ok(Self { path: path.to_owned(), partial, file: Some(BufWriter::with_capacity(BUFFER, file)) })
    }

    /// Writes at an offset. Skipped ranges are holes.
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.with("writing", |file| {
            if file.stream_position()? != offset {
                file.seek(SeekFrom::Start(offset))?;
            }
            file.write_all(bytes)
        })
    }

    /// The file is `length` bytes long, and complete. Returns the bytes that it takes on the disk.
    pub(super) fn finish(mut self, length: Option<u64>) -> Result<u64> {
        self.with("writing", |file| {
            file.flush()?;
            if let Some(length) = length {
                file.get_ref().set_len(length)?;
            }
            file.get_ref().sync_all()
        })?;
        self.file = None;
        let here = self.path.clone();
        name(&self.partial, &here)?;
        let dir = here.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("syncing", dir))?;
        let meta = std::fs::metadata(&here).map_err(Error::io("measuring", &here))?;
        Ok(std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }

    fn with<T>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
    ) -> Result<T> {
        match &mut self.file {
            Some(file) => work(file).map_err(Error::io(doing, &self.path)),
            None => Err(Error::Invalid { what: "file", why: "it is complete already".into() }),
        }
    }
}

/// Gives a complete file its name, unless a file of this name was created meanwhile.
fn name(partial: &Path, path: &Path) -> Result<()> {
    match std::fs::hard_link(partial, path) {
        Ok(()) => std::fs::remove_file(partial).map_err(Error::io("naming", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // The incomplete file is useless.
            let _ = std::fs::remove_file(partial);
            Err(Error::Exists { what: "the file", name: path.display().to_string() })
        }
        // A file system without hard links.
        Err(_) => std::fs::rename(partial, path).map_err(Error::io("naming", path)),
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // What was gathered need not be written any more.
            let _ = file.into_parts();
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
