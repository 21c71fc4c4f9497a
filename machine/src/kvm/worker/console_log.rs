use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

/// Length from which on a new log is begun.
pub(super) const LOG_BYTES_MAX: u64 = 16 << 20;
/// Bytes copied at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A guest's output, in two files of bounded length: the newest, and the one before. Both are open, because a confined
/// process can neither rename nor open files.
pub(super) struct ConsoleLog {
    newest: File,
    older: File,
    bytes_max: u64,
    bytes: u64,
}

impl ConsoleLog {
    /// Continues at the end of the newest file. Both are open for reading and appending.
    pub(super) fn new(newest: File, older: File, bytes_max: u64) -> io::Result<Self> {
        let bytes = newest.metadata()?.len();
        Ok(Self { newest, older, bytes_max, bytes })
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.bytes >= self.bytes_max {
                self.begin_next()?;
            }
            let room = usize::try_from(self.bytes_max - self.bytes).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.newest.write_all(now)?;
            self.bytes += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Copies the newest file into the older one and empties it.
    fn begin_next(&mut self) -> io::Result<()> {
        self.older.set_len(0)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut offset = 0;
        loop {
            let count = self.newest.read_at(&mut piece, offset)?;
            if count == 0 {
                break;
            }
            self.older.write_all(&piece[..count])?;
            offset += count as u64;
        }
        self.newest.set_len(0)?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::launch::log_file;
    use super::*;

    #[test]
    fn the_newest_is_kept_and_what_was_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (newest, older) = (dir.path().join("log"), dir.path().join("log.1"));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let open = || ConsoleLog::new(log_file(&newest).unwrap(), log_file(&older).unwrap(), 10).unwrap();
        let mut log = open();
        log.append(b"0123456789").unwrap();
        assert_eq!((read(&newest), read(&older)), ("0123456789".into(), String::new()));
        log.append(b"ab").unwrap();
        assert_eq!((read(&newest), read(&older)), ("ab".into(), "0123456789".into()));
        // Another worker continues, and writes more than fits.
        let mut log = open();
        log.append(b"cdefghijklmnopqrstuvwxyz").unwrap();
        assert_eq!((read(&newest), read(&older)), ("uvwxyz".into(), "klmnopqrst".into()));
    }
}
