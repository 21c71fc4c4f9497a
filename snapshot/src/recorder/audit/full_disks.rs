use std::ops::Range;
use std::sync::Arc;

use retrovisor_guest::{DiskState, Machine, MachineError, RUN_BLOCKS_MAX};

use super::block_comparison::BlockComparison;
use super::outcome::note_blocks;
use super::report::{AuditReport, DiskAuditReport};
use crate::clock::now_ms;
use crate::disk::{DiskBaseline, DiskMap};
use crate::error::{Error, Result};
use crate::recorder::baseline::Baseline;
use crate::recorder::engine::Recorder;

/// Ranges that are given to the driver at a time: 1 GiB of the disk.
const RANGES: u64 = 1024;
/// Blocks with data whose hashes are looked up together.
const HASHES: usize = 4096;
/// Blocks that a report names, at most.
const NAMED_MAX: usize = 64;

const NOT_RETAINED: &str = "the machine does not retain its contents at the newest checkpoint, as after a rollback to \
                            one that came from the store; the next checkpoint is compared again";

impl Recorder {
    /// Compares every block of the disks in the state of the newest checkpoint, which the driver retains, with that
    /// checkpoint.
    pub(super) fn audit_disks(
        &mut self,
        machine: &mut dyn Machine,
        baseline: &Baseline,
        newest: u64,
        report: &mut AuditReport,
    ) -> Result<()> {
        if baseline.disks.is_empty() {
            return Ok(());
        }
        let retained = machine.retained_disks()?;
        for disk in baseline.disks.values() {
            let (name, blocks) = (&disk.record.name, disk.map.blocks());
            let mut own = DiskAuditReport {
                disk: name.clone(),
                blocks,
                compared_blocks: 0,
                mismatched_blocks: 0,
                mismatches: Vec::new(),
                not_compared: String::new(),
            };
            let since_ms = now_ms();
            let compared = match state_of(disk, &retained) {
                Some(state) => {
                    self.compare_disk(machine, state, &disk.map).map_err(|error| error.to_string())
                }
                None => Err(NOT_RETAINED.to_owned()),
            };
            match compared {
                Ok(different) => {
                    own.compared_blocks = blocks;
                    own.mismatched_blocks = different.len() as u64;
                    let shared = self.sampler.shared();
                    let disk = (name.as_str(), blocks);
                    let doubtful = note_blocks(&self.store, self.machine, &shared, disk, &different, newest);
                    report.add_doubtful(doubtful);
                    own.mismatches = different.into_iter().take(NAMED_MAX).collect();
                    let mut state = self.sampler.state();
                    let ledger = state.disk(name, blocks);
                    ledger.audited(since_ms);
                    if own.mismatched_blocks == 0 {
                        ledger.whole(newest);
                    }
                }
                Err(why) => own.not_compared = why,
            }
            report.disks.push(own);
        }
        Ok(())
    }

    /// The blocks of a captured state that are not what the map says, ascending.
    fn compare_disk(&self, machine: &dyn Machine, state: &DiskState, map: &DiskMap) -> Result<Vec<u64>> {
        let mut blocks = machine.disk_blocks(state)?;
        let mut comparison = BlockComparison::new(&self.store, map, &mut *blocks);
        let mut different = Vec::new();
        let mut next = 0;
        while next < map.blocks() {
            let firsts = (0..RANGES).map(|number| next + number * RUN_BLOCKS_MAX);
            let firsts = firsts.take_while(|first| *first < map.blocks());
            let ranges: Vec<Range<u64>> =
                firsts.map(|first| first..(first + RUN_BLOCKS_MAX).min(map.blocks())).collect();
            // Up to the first range with data: it has as many blocks as are read at a time.
            let compared = comparison.ranges(&ranges, 1)?;
            next = compared.checked_sub(1).and_then(|last| ranges.get(last)).ok_or_else(nothing)?.end;
            if comparison.waiting() >= HASHES {
                different.extend(comparison.take_different()?);
            }
        }
        different.extend(comparison.take_different()?);
        Ok(different)
    }
}

fn nothing() -> Error {
    let (doing, message) = ("reading a disk".to_owned(), "the driver returned no blocks".to_owned());
    Error::Machine(MachineError::Driver { doing, message })
}

/// The state that has the disk's contents at the baseline, if the driver retains it.
fn state_of<'a>(disk: &'a DiskBaseline, retained: &[DiskState]) -> Option<&'a DiskState> {
    let (state, map) = disk.seen.as_ref()?;
    // After a rollback that wrote blocks, it is the state before that.
    (Arc::ptr_eq(map, &disk.map) && retained.contains(state)).then_some(state)
}
