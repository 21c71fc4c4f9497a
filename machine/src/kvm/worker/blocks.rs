use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskBlocks, MachineError, Page, RUN_BLOCKS_MAX, RunContent};

use super::link::Link;
use super::message::{Answer, Request, Run};

/// Ranges in one request, at most.
const RANGES_MAX: usize = 4096;

/// The blocks of a captured state, requested from the worker.
pub(super) struct RemoteBlocks {
    link: Arc<Mutex<Link>>,
    id: u64,
}

impl RemoteBlocks {
    /// The blocks that the worker has under a number.
    pub(super) fn new(link: Arc<Mutex<Link>>, id: u64) -> Self {
        Self { link, id }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskBlocks for RemoteBlocks {
    fn read(
        &mut self,
        ranges: &[Range<u64>],
        data_max: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Vec<BlockRun>, MachineError> {
        let ranges = &ranges[..ranges.len().min(RANGES_MAX)];
        let request = Request::ReadBlocks { id: self.id, ranges: ranges.to_vec(), data_max };
        // To the end of the range in which `data_max` is reached.
        let blocks_max = usize::try_from(data_max.saturating_add(RUN_BLOCKS_MAX)).unwrap_or(usize::MAX);
        let bytes_max = blocks_max.saturating_mul(BLOCK_SIZE);
        self.link().ask("reading blocks", &request, &[], bytes_max, |answer, body| {
            let Answer::Runs(runs) = answer else { return None };
            let runs: Vec<_> = runs.into_iter().map(Run::into_run).collect();
            are_valid(ranges, &runs, body.len()).then_some(())?;
            bytes.clear();
            bytes.extend_from_slice(body);
            Some(runs)
        })
    }

    fn read_base(&mut self, block: u64, into: &mut Page) -> Result<(), MachineError> {
        let request = Request::ReadBase { id: self.id, block };
        self.link().ask("reading a base image", &request, &[], BLOCK_SIZE, |answer, body| {
            let Answer::Done = answer else { return None };
            *into = body.try_into().ok()?;
            Some(())
        })
    }
}

impl Drop for RemoteBlocks {
    fn drop(&mut self) {
        // A lost worker cannot reply.
        let _ = self.link().ask("ending", &Request::EndReading { id: self.id }, &[], 0, |_, _| Some(()));
    }
}

/// Whether the runs are those of the first ranges, of at least one, with the right number of bytes.
fn are_valid(ranges: &[Range<u64>], runs: &[BlockRun], bytes: usize) -> bool {
    let mut runs = runs.iter();
    // What is left of a run: its next block, and how many.
    let (mut next, mut left) = (0, 0);
    let mut with_data = 0_u64;
    for (number, range) in ranges.iter().enumerate() {
        let mut block = range.start;
        while block < range.end {
            if left == 0 {
                let Some(run) = runs.next() else {
                    // The end of a range.
                    return number > 0 && block == range.start && is_size(with_data, bytes);
                };
                (next, left) = (run.first, run.count);
                if run.content == RunContent::Data {
                    with_data = with_data.saturating_add(run.count);
                }
            }
            let count = left.min(range.end - block);
            if next != block || count == 0 {
                return false;
            }
            (block, next, left) = (block + count, next.saturating_add(count), left - count);
        }
    }
    left == 0 && runs.next().is_none() && is_size(with_data, bytes)
}

/// Whether these are the bytes of so many blocks.
fn is_size(blocks: u64, bytes: usize) -> bool {
    blocks.checked_mul(BLOCK_SIZE as u64) == Some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_of_the_ranges_are_accepted() {
        let run = |first, count, content| BlockRun { first, count, content };
        let (base, data) = (RunContent::Base, RunContent::Data);
        let ranges = [16..32, 32..48, 0..5];
        let valid: [(&[BlockRun], usize); 4] = [
            (&[run(16, 16, base)], 0),
            (&[run(16, 32, base)], 0),
            (&[run(16, 3, data), run(19, 13, base)], 3),
            (&[run(16, 32, base), run(0, 5, data)], 5),
        ];
        for (runs, blocks) in valid {
            assert!(are_valid(&ranges, runs, blocks * BLOCK_SIZE), "{runs:?}");
            assert!(!are_valid(&ranges, runs, blocks * BLOCK_SIZE + 1), "{runs:?}");
        }
        let invalid: [&[BlockRun]; 8] = [
            &[],
            &[run(16, 15, base)],
            &[run(17, 15, base)],
            &[run(16, 17, base)],
            &[run(16, 0, base)],
            &[run(16, 32, base), run(1, 5, base)],
            &[run(16, 32, base), run(0, 5, base), run(5, 1, base)],
            &[run(16, u64::MAX, base)],
        ];
        for runs in invalid {
            assert!(!are_valid(&ranges, runs, 0), "{runs:?}");
        }
        assert!(are_valid(&[], &[], 0));
    }
}
