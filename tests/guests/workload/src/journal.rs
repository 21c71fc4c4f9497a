//! The files that are rewritten, appended to and checked.
//!
//! Blocks are read back with direct input, past the guest's page cache: a disk that did not go back
//! together with the memory is noticed here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::complaints::Complaints;
use crate::generator::{Generator, chain};
use crate::page::{PAGE_BYTES, Page, expected_sum};

/// Blocks in the file, the first of which holds the counter.
const BLOCKS: u64 = 64;
/// The log starts again at this length.
const LOG_BYTES: u64 = 16 << 10;
/// `O_DIRECT` on x86-64.
const DIRECT: i32 = 0o40000;

/// A block file and a log in a folder of their own.
pub(crate) struct Journal {
    blocks: File,
    direct: File,
    log: File,
    log_path: PathBuf,
    /// The log's length and the checksum of its bytes, as they ought to be.
    log_bytes: u64,
    log_sum: u64,
    /// The tick that last wrote each block.
    written_at: Vec<u64>,
    cursor: u64,
    sum: u64,
}

impl Journal {
    /// Starts afresh in `dir`.
    pub(crate) fn create(dir: &Path) -> io::Result<Self> {
        let dir = dir.join("workload");
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&dir)?,
        }
        let path = dir.join("blocks");
        let blocks = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        let mut page = Page::zero();
        for number in 0..BLOCKS {
            page.fill(number, 0);
            blocks.write_all_at(&page.0, number * PAGE_BYTES as u64)?;
        }
        blocks.sync_all()?;
        // A file system without direct input (tmpfs) is checked through its page cache.
        let direct =
            OpenOptions::new().read(true).custom_flags(DIRECT).open(&path).or_else(|_| File::open(&path))?;
        let log_path = dir.join("log");
        let log = OpenOptions::new().create(true).append(true).open(&log_path)?;
        let written_at = (0..BLOCKS).map(|_| 0).collect();
        Ok(Self { blocks, direct, log, log_path, log_bytes: 0, log_sum: 0, written_at, cursor: 1, sum: 0 })
    }

    /// Rewrites the counter and a block that `tick` chooses, appends a line, and makes both durable.
    pub(crate) fn write(&mut self, tick: u64, memory_sum: u64) -> io::Result<()> {
        let chosen = 1 + Generator::new(u64::MAX, tick).next() % (BLOCKS - 1);
        for number in [0, chosen] {
            let mut page = Page::zero();
            page.fill(number, tick);
            self.blocks.write_all_at(&page.0, number * PAGE_BYTES as u64)?;
            if let Some(at) = usize::try_from(number).ok().and_then(|number| self.written_at.get_mut(number))
            {
                *at = tick;
            }
        }
        self.blocks.sync_data()?;
        let line = format!("tick {tick:05} block {chosen:02} mem {memory_sum:016x}\n");
        if self.log_bytes + line.len() as u64 > LOG_BYTES {
            self.log.set_len(0)?;
            (self.log_bytes, self.log_sum) = (0, 0);
        }
        self.log.write_all(line.as_bytes())?;
        self.log.sync_data()?;
        self.log_bytes += line.len() as u64;
        self.log_sum = bytes_sum(self.log_sum, line.as_bytes());
        Ok(())
    }

    /// Reads the counter, a few blocks and, once a pass, the whole log, and checks them against what they
    /// ought to be at `tick`.
    pub(crate) fn check(&mut self, tick: u64, complaints: &mut Complaints) -> io::Result<()> {
        let counter = self.check_block(0, complaints)?;
        complaints.unless_equal("counter in file", &tick, &counter);
        for _ in 0..3 {
            self.check_block(self.cursor, complaints)?;
            self.cursor = 1 + self.cursor % (BLOCKS - 1);
        }
        if self.cursor == 1 {
            let text = fs::read(&self.log_path)?;
            complaints.unless_equal("log length", &self.log_bytes, &(text.len() as u64));
            complaints.unless_equal("log", &self.log_sum, &bytes_sum(0, &text));
        }
        Ok(())
    }

    fn check_block(&mut self, number: u64, complaints: &mut Complaints) -> io::Result<u64> {
        let mut page = Page::zero();
        self.direct.read_exact_at(&mut page.0, number * PAGE_BYTES as u64)?;
        let at = usize::try_from(number).ok().and_then(|number| self.written_at.get(number)).copied();
        let (expected, got) = (expected_sum(number, at.unwrap_or(0)), page.sum());
        self.sum = chain(self.sum, got);
        if expected != got {
            complaints.add(
                format_args!("file block {number} of tick {}", at.unwrap_or(0)),
                format_args!("{expected:016x}"),
                format_args!("{got:016x} of tick {}", page.tick()),
            );
        }
        Ok(page.tick())
    }

    /// The checksum of all that was read back, in its order.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }
}

/// Lines are padded to no word boundary, so the log is summed byte by byte; it is short.
fn bytes_sum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("retrovisor-workload-{name}-{}", std::process::id()))
    }

    fn run(journal: &mut Journal, ticks: std::ops::RangeInclusive<u64>) -> u64 {
        let mut complaints = Complaints::default();
        for tick in ticks {
            journal.write(tick, tick).expect("written");
            journal.check(tick, &mut complaints).expect("read");
        }
        complaints.count()
    }

    #[test]
    fn files_that_went_back_without_the_memory_are_noticed() {
        let dir = folder("back");
        let mut journal = Journal::create(&dir).expect("created");
        assert_eq!(run(&mut journal, 1..=50), 0);
        let old = fs::read(dir.join("workload/blocks")).expect("read");
        assert_eq!(run(&mut journal, 51..=60), 0);
        journal.blocks.write_all_at(&old, 0).expect("written");
        journal.blocks.sync_data().expect("synced");
        let mut complaints = Complaints::default();
        journal.check(60, &mut complaints).expect("read");
        assert!(complaints.count() >= 2, "the counter's block and the counter");
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn the_log_starts_again_and_the_sum_follows_from_the_tick() {
        let (dir, other_dir) = (folder("one"), folder("other"));
        let mut journal = Journal::create(&dir).expect("created");
        let mut other = Journal::create(&other_dir).expect("created");
        assert_eq!(run(&mut journal, 1..=500), 0);
        assert!(fs::metadata(dir.join("workload/log")).expect("log").len() <= LOG_BYTES);
        assert_eq!(run(&mut other, 1..=500), 0);
        assert_eq!(journal.sum(), other.sum());
        fs::remove_dir_all(dir).expect("removed");
        fs::remove_dir_all(other_dir).expect("removed");
    }
}
