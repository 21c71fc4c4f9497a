use std::sync::{Arc, Mutex, PoisonError};

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskChanges, MachineError, RUN_BLOCKS_MAX, RunContent};

use super::link::Link;
use super::message::{Answer, Request, Run};

/// Longest body with blocks.
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const RUN_BYTES_MAX: usize = RUN_BLOCKS_MAX as usize * BLOCK_SIZE;

/// Changed blocks, requested from the worker run by run.
pub(super) struct RemoteChanges {
    link: Arc<Mutex<Link>>,
    id: u64,
    /// Of the disk.
    blocks: u64,
    /// The next run begins at this block or later.
    next: u64,
}

impl RemoteChanges {
    /// The changed blocks that the worker has under a number, of a disk of this many blocks.
    pub(super) fn new(link: Arc<Mutex<Link>>, id: u64, blocks: u64) -> Self {
        Self { link, id, blocks, next: 0 }
    }
}

impl DiskChanges for RemoteChanges {
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let request = Request::NextRun { id: self.id };
        let (next, blocks) = (self.next, self.blocks);
        let run = link.ask("reading changed blocks", &request, &[], RUN_BYTES_MAX, |answer, body| {
            let Answer::Run(run) = answer else { return None };
            let run = run.map(Run::into_run);
            if let Some(run) = &run {
                checked(run, next, blocks, body.len()).then_some(())?;
            }
            bytes.clear();
            bytes.extend_from_slice(body);
            Some(run)
        })?;
        if let Some(run) = &run {
            self.next = run.first + run.count;
        }
        Ok(run)
    }
}

impl Drop for RemoteChanges {
    fn drop(&mut self) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        // A lost worker cannot reply.
        let _ = link.ask("ending", &Request::EndReading { id: self.id }, &[], 0, |_, _| Some(()));
    }
}

/// Whether a run is within the disk, follows the one before, and has the right number of bytes.
fn checked(run: &BlockRun, next: u64, blocks: u64, bytes: usize) -> bool {
    let end = run.first.checked_add(run.count).filter(|end| *end <= blocks);
    let expected = match run.content {
        RunContent::Data if run.count <= RUN_BLOCKS_MAX => usize::try_from(run.count).ok(),
        RunContent::Data => None,
        RunContent::Zero | RunContent::Base => Some(0),
    };
    run.count > 0
        && run.first >= next
        && end.is_some()
        && expected.is_some_and(|count| count * BLOCK_SIZE == bytes)
}
