//! The blocks of a disk that differ between two snapshots, read from outside while QEMU continues.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskChanges, MachineError, RUN_BLOCKS_MAX, RunContent};

use super::base::Base;
use crate::qemu::qcow2::disk::{Change, Content, Differences, Disk};

/// The changes of one disk. The snapshots' clusters and tables are never written while the snapshots exist, and QEMU
/// flushed the tables when it made them: they can be read at any time.
pub(in crate::qemu) struct OverlayChanges {
    name: String,
    differences: Differences<File>,
    base: Option<Base>,
    size_bytes: u64,
    /// Runs that were found and not returned yet.
    ready: VecDeque<(BlockRun, Vec<u8>)>,
}

impl OverlayChanges {
    /// Between the snapshots `at` and `since`; without the latter, between `at` and the initial contents. Reads the
    /// list of snapshots: no snapshot may be made or deleted meanwhile.
    pub(in crate::qemu) fn new(
        name: &str,
        path: &Path,
        base: Option<Base>,
        at: &str,
        since: Option<&str>,
    ) -> Result<Self, MachineError> {
        let open = || -> Result<_, String> {
            let file = File::open(path).map_err(|error| error.to_string())?;
            let disk = Disk::at(file, at)?;
            let size_bytes = disk.size_bytes();
            Ok((disk.differences(since)?, size_bytes))
        };
        let (differences, size_bytes) = open().map_err(|message| unreadable(name, message))?;
        Ok(Self { name: name.to_owned(), differences, base, size_bytes, ready: VecDeque::new() })
    }

    /// Reads clusters until there is a run, or none are left.
    fn find(&mut self) -> Result<bool, String> {
        while self.ready.is_empty() {
            let Some(change) = self.differences.next()? else { return Ok(false) };
            self.look(&change)?;
        }
        Ok(true)
    }

    /// The blocks of a cluster that differ: the guest writes blocks, QEMU copies the cluster around them.
    fn look(&mut self, change: &Change) -> Result<(), String> {
        let cluster_bytes = self.differences.disk.cluster_bytes();
        let offset = change.cluster * cluster_bytes as u64;
        let within = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let within = within.min(cluster_bytes);
        let first = offset / BLOCK_SIZE as u64;
        let count = within.div_ceil(BLOCK_SIZE);
        let (new, old) = self.differences.disk.contents(change)?;
        let mut new = match new {
            Content::Backing => {
                let content = if self.base.is_some() { RunContent::Base } else { RunContent::Zero };
                self.ready.push_back((BlockRun { first, count: count as u64, content }, Vec::new()));
                return Ok(());
            }
            Content::Zero => {
                let run = BlockRun { first, count: count as u64, content: RunContent::Zero };
                self.ready.push_back((run, Vec::new()));
                return Ok(());
            }
            Content::Data(bytes) => bytes,
        };
        new[within..].fill(0);
        let old = match (old, &mut self.base) {
            (Content::Data(mut bytes), _) => {
                bytes[within..].fill(0);
                bytes
            }
            (Content::Backing, Some(base)) => {
                let mut bytes = vec![0; cluster_bytes];
                base.read(offset, &mut bytes[..within])?;
                bytes
            }
            (Content::Zero, _) | (Content::Backing, None) => vec![0; cluster_bytes],
        };
        let blocks = new.as_chunks::<BLOCK_SIZE>().0.iter().zip(old.as_chunks::<BLOCK_SIZE>().0);
        let mut run: Option<(BlockRun, Vec<u8>)> = None;
        for ((new, old), block) in blocks.zip(first..).take(count) {
            if new == old {
                self.ready.extend(run.take());
                continue;
            }
            let start = || (BlockRun { first: block, count: 0, content: RunContent::Data }, Vec::new());
            let (run, bytes) = run.get_or_insert_with(start);
            run.count += 1;
            bytes.extend_from_slice(new);
        }
        self.ready.extend(run);
        Ok(())
    }
}

impl DiskChanges for OverlayChanges {
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError> {
        let found = self.find().and_then(|more| {
            let first = if more { self.ready.pop_front() } else { None };
            let Some((mut run, first_bytes)) = first else { return Ok(None) };
            *bytes = first_bytes;
            // Consecutive blocks extend the run.
            while self.find()? {
                let fits = self.ready.front().is_some_and(|(next, _)| {
                    next.content == run.content
                        && next.first == run.first + run.count
                        && (run.content != RunContent::Data || run.count + next.count <= RUN_BLOCKS_MAX)
                });
                let Some((next, more)) = fits.then(|| self.ready.pop_front()).flatten() else { break };
                run.count += next.count;
                bytes.extend(more);
            }
            Ok(Some(run))
        });
        found.map_err(|message| unreadable(&self.name, message))
    }
}

fn unreadable(name: &str, message: String) -> MachineError {
    MachineError::Driver { doing: format!("reading the overlay of disk {name}"), message }
}

#[cfg(test)]
mod tests;
