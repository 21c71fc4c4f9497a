use std::ops::ControlFlow;

use serde::Serialize;

use super::garbage::Census;
use super::mark::ContentSet;
use super::merge::Tree;
use super::options::CompactOptions;
use super::progress::{PruneProgress, PruneStep};
use crate::catalogue::Link;
use crate::content::ContentId;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::store::Store;

/// Contents removed in one transaction, while the content writer is held.
const SWEEP: usize = 1 << 12;
/// Checkpoints marked between two reports of progress.
const MARK: usize = 64;

/// What a compaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompactReport {
    /// Contents that nothing referred to.
    pub contents_removed: u64,
    /// Packs that are gone, rewritten ones included.
    pub packs_removed: u64,
    /// Packs that were written.
    pub packs_written: u64,
    /// Bytes read from packs and written to new ones.
    pub bytes_copied: u64,
    /// Bytes that were freed on the disk, in packs and catalogue.
    pub bytes_freed: u64,
    /// Packs that were not rewritten because something in them is damaged: verify them.
    pub damaged_packs: Vec<u32>,
    /// Whether it was stopped.
    pub stopped: bool,
    /// Whether there was too little space to rewrite some packs or the catalogue: repeat it when there is more.
    pub out_of_space: bool,
}

impl Store {
    /// Removes contents without references, rewrites packs with much garbage, and frees the catalogue's unused space.
    /// Machines are recorded, and readers read, meanwhile.
    /// `progress` stops it between two steps with [`ControlFlow::Break`]; completed steps stay done.
    ///
    /// Fails with [`crate::Error::Damaged`] before anything is removed when a checkpoint is damaged, so that the
    /// contents to which it refers are unknown.
    pub fn compact(
        &self,
        options: &CompactOptions,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<CompactReport> {
        let _alone = self.maintain()?;
        let _space = self.lend_reserve()?;
        self.compact_alone(options, progress)
    }

    pub(super) fn compact_alone(
        &self,
        options: &CompactOptions,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<CompactReport> {
        let mut report = CompactReport::default();
        let before = self.size()?;
        let go_on = self.sweep(&mut report, progress)? && self.rewrite(options, &mut report, progress)?;
        report.stopped = !go_on;
        if go_on {
            let at = PruneProgress { step: PruneStep::Vacuum, done: 0, total: 1 };
            if progress(at).is_continue() {
                match self.catalogue().vacuum(options.vacuum_percent_min) {
                    // The free part of the catalogue is used again, so that nothing is lost without it.
                    Err(Error::Full { .. }) => report.out_of_space = true,
                    other => {
                        other?;
                    }
                }
            } else {
                report.stopped = true;
            }
        }
        report.bytes_freed = before.saturating_sub(self.size()?);
        Ok(report)
    }

    /// Removes contents that nothing refers to. Returns whether it was not stopped.
    fn sweep(
        &self,
        report: &mut CompactReport,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<bool> {
        // What is added from here on is left alone.
        let end = self.content_writer()?.next_content();
        let lost = self.catalogue().marked()?;
        let mut live = ContentSet::default();
        let mut newest = CheckpointId(0);
        let links: Vec<Link> = Tree::read(self)?.links().cloned().collect();
        let total = links.len() as u64;
        for (at, part) in links.chunks(MARK).enumerate() {
            let at = PruneProgress { step: PruneStep::Mark, done: (at * MARK) as u64, total };
            if progress(at).is_break() {
                return Ok(false);
            }
            for link in part {
                self.mark_checkpoint(link, lost.contains(&link.checkpoint), &mut live)?;
                newest = newest.max(link.checkpoint);
            }
        }
        let mut dead = Vec::new();
        self.catalogue().each_content_row(|id, _, _| {
            if id.0 < end && !live.contains(id) {
                dead.push(id);
            }
        })?;
        let total = dead.len() as u64;
        for part in dead.chunks(SWEEP) {
            let at = PruneProgress { step: PruneStep::Sweep, done: report.contents_removed, total };
            if progress(at).is_break() {
                return Ok(false);
            }
            report.contents_removed += self.remove_batch(part, &mut live, &mut newest)?;
        }
        Ok(true)
    }

    /// Removes contents that were added after the checkpoint `newest`, but for those that a later checkpoint refers
    /// to.
    pub(crate) fn remove_unreferenced(&self, contents: &[ContentId], mut newest: CheckpointId) -> Result<()> {
        let mut live = ContentSet::default();
        for part in contents.chunks(SWEEP) {
            self.remove_batch(part, &mut live, &mut newest)?;
        }
        Ok(())
    }

    /// Removes the contents of a batch, ascending, that are not `live`. While this holds the content writer, it is
    /// certain which are: contents without references may have been added again, and found by their hashes, by a
    /// checkpoint that was committed since. Returns how many were removed.
    fn remove_batch(
        &self,
        part: &[ContentId],
        live: &mut ContentSet,
        newest: &mut CheckpointId,
    ) -> Result<u64> {
        let mut content_writer = self.content_writer()?;
        for link in self.catalogue().links_after(*newest)? {
            self.mark_checkpoint(&link, false, live)?;
            *newest = link.checkpoint.max(*newest);
        }
        let part: Vec<ContentId> = part.iter().copied().filter(|id| !live.contains(*id)).collect();
        self.catalogue().remove_contents(&part, content_writer.next_content())?;
        content_writer.forget(|id| part.binary_search(&id).is_ok());
        Ok(part.len() as u64)
    }

    /// Rewrites packs. Returns whether it was not stopped.
    fn rewrite(
        &self,
        options: &CompactOptions,
        report: &mut CompactReport,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<bool> {
        let census = Census::take(self, |_| true)?;
        let mut chosen: Vec<u32> = census
            .packs
            .iter()
            .filter(|(_, pack)| pack.bytes > 0 && pack.is_worth_it(options.garbage_percent_min))
            .map(|(number, _)| *number)
            .collect();
        // Those that need the least space first: what they free is there for the next ones.
        chosen.sort_by_key(|number| census.packs[number].live_bytes);
        let total = chosen.iter().map(|number| census.packs[number].bytes).sum();
        let mut done = 0;
        for number in chosen {
            if progress(PruneProgress { step: PruneStep::Rewrite, done, total }).is_break() {
                return Ok(false);
            }
            done += census.packs[&number].bytes;
            match self.rewrite_pack(number, &census, report) {
                // What follows needs no less.
                Err(Error::Full { .. }) => {
                    report.out_of_space = true;
                    break;
                }
                other => other?,
            }
        }
        Ok(true)
    }
}
