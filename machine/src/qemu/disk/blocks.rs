//! The blocks of a disk at a snapshot, read from outside while QEMU continues.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskBlocks, MachineError, Page, RunContent, ZERO_PAGE};

use super::base::Base;
use crate::qemu::qcow2::disk::{Disk, Place};

/// One disk at a snapshot. The snapshot's clusters and tables are never written while it exists.
pub(in crate::qemu) struct OverlayBlocks {
    name: String,
    path: PathBuf,
    disk: Disk<File>,
    /// The image under it, if there is one and it was opened.
    base: Option<Base>,
    /// It is opened when it is needed first, which is seldom.
    is_base_opened: bool,
}

impl OverlayBlocks {
    /// At the snapshot `at`. Reads the list of snapshots: no snapshot may be made or deleted meanwhile.
    pub(in crate::qemu) fn new(name: &str, path: &Path, at: &str) -> Result<Self, MachineError> {
        let file = File::open(path).map_err(|error| error.to_string());
        let disk = file.and_then(|file| Disk::at(file, at)).map_err(|message| unreadable(name, message))?;
        Ok(Self { name: name.to_owned(), path: path.to_owned(), disk, base: None, is_base_opened: false })
    }

    /// Appends the runs of a range, and the bytes of those with data.
    fn read_range(
        &mut self,
        range: &Range<u64>,
        runs: &mut Vec<BlockRun>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), String> {
        let block_bytes = BLOCK_SIZE as u64;
        let per_cluster = self.disk.cluster_bytes() as u64 / block_bytes;
        let mut block = range.start;
        while block < range.end {
            let cluster = block / per_cluster;
            let count = ((cluster + 1) * per_cluster).min(range.end) - block;
            let content = match self.disk.place(cluster)? {
                Place::Backing => RunContent::Base,
                Place::Zero => RunContent::Zero,
                Place::Data(place) => {
                    // Below the bytes of a cluster, which is at most 2 MiB.
                    let within = usize::try_from(block % per_cluster * block_bytes).unwrap_or(0);
                    let length = usize::try_from(count * block_bytes).unwrap_or(0);
                    let at = bytes.len();
                    bytes.resize(at + length, 0);
                    self.disk.read_part(place, within, &mut bytes[at..])?;
                    // The cluster may continue past the disk's end.
                    let end = self.disk.size_bytes().saturating_sub(block * block_bytes);
                    let end = usize::try_from(end).unwrap_or(usize::MAX).min(length);
                    bytes[at + end..].fill(0);
                    RunContent::Data
                }
            };
            BlockRun::append(runs, block, count, content);
            block += count;
        }
        Ok(())
    }
}

impl DiskBlocks for OverlayBlocks {
    fn read(
        &mut self,
        ranges: &[Range<u64>],
        data_max: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Vec<BlockRun>, MachineError> {
        BlockRun::of_ranges(ranges, data_max, bytes, |range, runs, bytes| {
            self.read_range(range, runs, bytes).map_err(|message| unreadable(&self.name, message))
        })
    }

    fn read_base(&mut self, block: u64, into: &mut Page) -> Result<(), MachineError> {
        if !self.is_base_opened {
            let opened = Base::of(&self.path).map_err(|message| unreadable(&self.name, message))?;
            self.base = opened.map(|(_, base)| base);
            self.is_base_opened = true;
        }
        *into = ZERO_PAGE;
        let Some(base) = &mut self.base else { return Ok(()) };
        let offset = block.saturating_mul(BLOCK_SIZE as u64);
        let end = self.disk.size_bytes().saturating_sub(offset);
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(BLOCK_SIZE);
        base.read(offset, &mut into[..end]).map_err(|message| unreadable(&self.name, message))
    }
}

fn unreadable(name: &str, message: String) -> MachineError {
    MachineError::Driver { doing: format!("reading the overlay of disk {name}"), message }
}
