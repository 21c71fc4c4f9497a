use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The output of a guest, the newest mebibyte of it. Clones are the same output; it can be read from any thread.
///
/// Bytes are numbered from the machine's launch on. A rollback does not undo output.
#[derive(Clone, Default)]
pub struct ConsoleOutput(Arc<Shared>);

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Default)]
struct Said {
    /// The newest bytes.
    kept: VecDeque<u8>,
    /// The number of the first byte kept.
    first: u64,
}

impl Said {
    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }
}

impl ConsoleOutput {
    /// Bytes that are kept.
    pub const KEPT_BYTES_MAX: usize = 1 << 20;

    /// A copy of the kept bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.since(0).0
    }

    /// The bytes from number `offset` on, and the number after them for the next call. Bytes that are no longer kept
    /// are left out: then the difference of the two numbers exceeds the number of bytes.
    #[must_use]
    pub fn since(&self, offset: u64) -> (Vec<u8>, u64) {
        let said = self.lock();
        let skipped = usize::try_from(offset.saturating_sub(said.first)).unwrap_or(usize::MAX);
        (said.kept.range(skipped.min(said.kept.len())..).copied().collect(), said.end())
    }

    /// The number that the next byte will have.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    /// Waits until there is more than `offset` bytes, or the time is over; whether there is.
    #[must_use]
    pub fn wait(&self, offset: u64, most: Duration) -> bool {
        let until = Instant::now() + most;
        let mut said = self.lock();
        while said.end() <= offset {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            said = self.0.more.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut said = self.lock();
        said.kept.extend(bytes);
        let excess = said.kept.len().saturating_sub(Self::KEPT_BYTES_MAX);
        said.kept.drain(..excess);
        said.first += excess as u64;
        drop(said);
        self.0.more.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_kept_under_their_numbers() {
        let mut output = ConsoleOutput::default();
        output.write_all(b"hello").unwrap();
        assert_eq!(output.since(0), (b"hello".to_vec(), 5));
        assert_eq!(output.since(3), (b"lo".to_vec(), 5));
        assert_eq!(output.since(9), (Vec::new(), 5));
        output.write_all(&vec![b'x'; ConsoleOutput::KEPT_BYTES_MAX]).unwrap();
        output.write_all(b"yz").unwrap();
        let end = ConsoleOutput::KEPT_BYTES_MAX as u64 + 7;
        assert_eq!(output.since(end - 3), (b"xyz".to_vec(), end));
        let (kept, next) = output.since(2);
        assert_eq!((kept.len(), next, output.end()), (ConsoleOutput::KEPT_BYTES_MAX, end, end));
    }

    #[test]
    fn a_reader_waits_for_more() {
        let mut output = ConsoleOutput::default();
        assert!(!output.wait(0, Duration::from_millis(1)));
        let reader = output.clone();
        let thread = std::thread::spawn(move || {
            assert!(reader.wait(0, Duration::from_mins(1)));
            reader.since(0)
        });
        output.write_all(b"!").unwrap();
        assert_eq!(thread.join().unwrap(), (b"!".to_vec(), 1));
    }
}
