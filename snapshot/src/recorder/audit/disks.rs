//! The audit of disks at a checkpoint, on the storing thread: the guest runs, and a captured state does not change.

use super::block_comparison::BlockComparison;
use super::outcome::note_blocks;
use super::status::SharedAudit;
use crate::disk::PreparedDisk;
use crate::error::Result;
use crate::id::MachineId;
use crate::mutex::lock;
use crate::store::Store;

/// Compares the next blocks of each disk with a checkpoint that was stored, and records the outcome.
pub(super) fn settle_disks(
    store: &Store,
    machine: MachineId,
    shared: &SharedAudit,
    sequence: u64,
    disks: &mut [PreparedDisk],
) {
    for disk in disks {
        if let Err(error) = settle_disk(store, machine, shared, sequence, disk) {
            let name = &disk.baseline.record.name;
            tracing::warn!(%error, disk = name, "a disk could not be audited");
        }
    }
}

fn settle_disk(
    store: &Store,
    machine: MachineId,
    shared: &SharedAudit,
    sequence: u64,
    disk: &mut PreparedDisk,
) -> Result<()> {
    let (name, map) = (&disk.baseline.record.name, &disk.baseline.map);
    let mut state = lock(shared);
    let data_max = state.blocks();
    let ledger = state.disk(name, map.blocks());
    if disk.is_whole {
        ledger.whole(sequence);
    }
    let pieces = ledger.next_pieces();
    drop(state);
    // Without it, the disk cannot be read, or its audit is off.
    let Some(blocks) = &mut disk.blocks else { return Ok(()) };
    let mut comparison = BlockComparison::new(store, map, &mut **blocks);
    let compared = comparison.ranges(&pieces, data_max)?;
    let different = comparison.take_different()?;
    note_blocks(store, machine, shared, (name, map.blocks()), &different, sequence);
    lock(shared).disk(name, map.blocks()).advance(compared as u64, sequence);
    Ok(())
}
