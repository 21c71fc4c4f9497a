//! Writes blocks into the disks of a paused QEMU.
//!
//! The blocks are written by QEMU itself, with its monitor's command `qemu-io` on the device's own access to the disk,
//! because no other process may write an image that QEMU has open. That command does not report failures, so everything
//! written is read back from the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;

use retrovisor_guest::{BLOCK_SIZE, BlockContent, MachineError, Page, ZERO_PAGE};

use super::attached::AttachedDisk;
use super::base::Base;
use crate::qemu::fd_set::FdSet;
use crate::qemu::memory_file;
use crate::qemu::monitor::Monitor;
use crate::qemu::qcow2::disk::{Content, Disk};

/// Bound on the blocks that one command writes: 4 MiB.
const COMMAND_BLOCKS_MAX: usize = 1024;

/// The blocks written since the last check.
#[derive(Default)]
pub(in crate::qemu) struct BlockWriter {
    /// Blocks by disk, each with a hash of the expected contents.
    written: BTreeMap<String, BTreeMap<u64, u64>>,
    /// A file in memory through which blocks reach QEMU.
    scratch: Option<(File, FdSet)>,
}

impl BlockWriter {
    /// Writes consecutive blocks.
    pub(in crate::qemu) fn write(
        &mut self,
        monitor: &mut Monitor,
        disk: &AttachedDisk,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let failed =
            |message: String| MachineError::Driver { doing: format!("writing disk {}", disk.name), message };
        let (shape, path) = disk
            .shape
            .as_ref()
            .zip(disk.path.as_ref())
            .ok_or_else(|| failed("its blocks cannot be written from outside".into()))?;
        let device = disk.device.as_ref().ok_or_else(|| failed("QEMU does not report its device".into()))?;
        // The command's words are separated by spaces and quoted.
        if device.contains([' ', '"', '\\', '\'']) {
            return Err(failed(format!("the device's name {device} cannot be used in a command")));
        }
        let count = contents.len() as u64;
        if first.checked_add(count).is_none_or(|end| end > shape.blocks()) {
            return Err(failed(format!("it has no blocks {first} to {}", first.saturating_add(count))));
        }
        let mut base = if contents.contains(&BlockContent::Base) {
            Base::of(path).map_err(failed)?.map(|(_, base)| base)
        } else {
            None
        };
        let mut run: Vec<Page> = Vec::new();
        let hashes = self.written.entry(disk.name.clone()).or_default();
        let mut begun = first;
        for (content, block) in contents.iter().zip(first..) {
            let page = match content {
                BlockContent::Zero => ZERO_PAGE,
                BlockContent::Data(page) => **page,
                BlockContent::Base => {
                    let mut page = ZERO_PAGE;
                    if let Some(base) = &mut base {
                        base.read(block * BLOCK_SIZE as u64, &mut page).map_err(failed)?;
                    }
                    page
                }
            };
            let zero = retrovisor_guest::is_zero(&page);
            let breaks = run.last().is_some_and(|last| retrovisor_guest::is_zero(last) != zero);
            if breaks || run.len() == COMMAND_BLOCKS_MAX {
                command(monitor, &mut self.scratch, device, begun, &run, shape.size_bytes)?;
                run.clear();
                begun = block;
            }
            run.push(page);
            hashes.insert(block, hash(&page));
        }
        if run.is_empty() {
            return Ok(());
        }
        command(monitor, &mut self.scratch, device, begun, &run, shape.size_bytes)
    }

    /// Drops what was noted of blocks that need no check any more.
    pub(in crate::qemu) fn forget(&mut self) {
        self.written.clear();
    }

    /// Reads back all written blocks, once QEMU has written its tables to the image.
    pub(in crate::qemu) fn check(
        &mut self,
        monitor: &mut Monitor,
        disks: &[AttachedDisk],
    ) -> Result<(), MachineError> {
        for (name, blocks) in std::mem::take(&mut self.written) {
            let failed =
                |message: String| MachineError::Driver { doing: format!("checking disk {name}"), message };
            let disk = disks.iter().find(|disk| disk.name == name);
            let (disk, path) = disk
                .and_then(|disk| Some((disk, disk.path.as_ref()?)))
                .ok_or_else(|| failed("it is gone".into()))?;
            if let Some(device) = &disk.device {
                monitor.human(&format!("qemu-io -d {device} flush"))?;
            }
            let mut base = Base::of(path).map_err(failed)?.map(|(_, base)| base);
            let file = File::open(path).map_err(|error| failed(error.to_string()))?;
            let mut image = Disk::now(file).map_err(failed)?;
            let cluster_bytes = image.cluster_bytes();
            let size_bytes = image.size_bytes();
            let mut current: Option<(u64, Vec<u8>)> = None;
            for (block, expected) in blocks {
                let offset = block * BLOCK_SIZE as u64;
                let cluster = offset / cluster_bytes as u64;
                if current.as_ref().is_none_or(|(number, _)| *number != cluster) {
                    let bytes = match image.cluster(cluster).map_err(failed)? {
                        Content::Data(bytes) => bytes,
                        Content::Zero => vec![0; cluster_bytes],
                        Content::Backing => {
                            let mut bytes = vec![0; cluster_bytes];
                            if let Some(base) = &mut base {
                                base.read(cluster * cluster_bytes as u64, &mut bytes).map_err(failed)?;
                            }
                            bytes
                        }
                    };
                    current = Some((cluster, bytes));
                }
                let Some((_, bytes)) = &current else { continue };
                // Both are below the bytes of a cluster.
                let start = usize::try_from(offset % cluster_bytes as u64).unwrap_or(0);
                let mut page = ZERO_PAGE;
                let length = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX).min(BLOCK_SIZE);
                page[..length].copy_from_slice(&bytes[start..start + length]);
                if hash(&page) != expected {
                    return Err(failed(format!(
                        "block {block} does not hold what was written (QEMU's log has details): the host's disk may be full"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Writes blocks that are either all zero or all data.
fn command(
    monitor: &mut Monitor,
    scratch: &mut Option<(File, FdSet)>,
    device: &str,
    first: u64,
    blocks: &[Page],
    size_bytes: u64,
) -> Result<(), MachineError> {
    let offset = first * BLOCK_SIZE as u64;
    let length = (blocks.len() as u64 * BLOCK_SIZE as u64).min(size_bytes - offset);
    if blocks.iter().all(retrovisor_guest::is_zero) {
        monitor.human(&format!("qemu-io -d {device} \"write -q -z -u {offset} {length}\""))?;
        return Ok(());
    }
    let (file, set) = if let Some(scratch) = scratch {
        scratch
    } else {
        let file = memory_file::create(c"retrovisor-blocks", &[])?;
        let set = FdSet::add(monitor, &file)?;
        scratch.insert((file, set))
    };
    let bytes = blocks.as_flattened();
    let io = |source| MachineError::Io { doing: "handing blocks to QEMU".into(), source };
    file.set_len(length).map_err(io)?;
    file.write_all_at(&bytes[..usize::try_from(length).unwrap_or(bytes.len())], 0).map_err(io)?;
    let path = set.process_path();
    monitor.human(&format!("qemu-io -d {device} \"write -q -s {path} {offset} {length}\""))?;
    Ok(())
}

fn hash(page: &Page) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(page);
    hasher.finish()
}
