use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use retrovisor_guest::{BLOCK_SIZE, BlockContent, Page, ZERO_PAGE};

use super::map::{BASE, DiskMap};
use super::record::DiskRecord;
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::store::Store;

/// Blocks read from packs at a time when a whole disk is written out: 16 MiB.
const EXPORT_BLOCKS: usize = 4096;

/// A disk at a checkpoint, to be read. Shared between threads.
pub struct DiskImage {
    store: Arc<Store>,
    record: DiskRecord,
    map: Arc<DiskMap>,
    checkpoint: String,
}

/// Reads from the base image: the block's number, and the buffer for its bytes.
type ReadBase<'a> = &'a mut dyn FnMut(u64, &mut Page) -> std::io::Result<()>;

impl Store {
    /// The disks of a checkpoint whose contents are in the store.
    pub fn disks(&self, checkpoint: CheckpointId) -> Result<Vec<DiskRecord>> {
        self.catalogue().link(checkpoint)?;
        Ok(self.catalogue().disks_at(checkpoint)?.into_iter().map(|(record, _)| record).collect())
    }

    /// A disk at a checkpoint.
    pub fn disk(self: &Arc<Self>, checkpoint: CheckpointId, name: &str) -> Result<DiskImage> {
        let record = self.disks(checkpoint)?.into_iter().find(|disk| disk.name == name);
        let record = record.ok_or_else(|| Error::NotFound {
            what: "disk",
            name: name.to_owned(),
            help: "the checkpoint has no such disk, or was taken when disks were not in the store yet",
        })?;
        let map = self.disk_map(checkpoint, &record)?;
        let checkpoint = self.catalogue().checkpoint(checkpoint)?.name;
        Ok(DiskImage { store: Arc::clone(self), record, map, checkpoint })
    }
}

impl DiskImage {
    /// Name, size and base.
    #[must_use]
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }

    /// Reads one block, checked against its hash: fills `into` if it holds data. Past the end: as in the base.
    pub fn read<'a>(&self, block: u64, into: &'a mut Page) -> Result<BlockContent<'a>> {
        Ok(match self.map.get(block) {
            ContentRef::Zero => BlockContent::Zero,
            ContentRef::Removed => BlockContent::Base,
            ContentRef::Stored(id) => {
                into.copy_from_slice(&self.content(id, block)?[..]);
                BlockContent::Data(into)
            }
        })
    }

    /// The blocks in the store: those that differ from the base, ascending, including zero ones.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        self.map.iter().map(|(block, _)| block)
    }

    /// Writes the whole disk as a raw image to `out`, which must be empty: zeros become holes. Blocks of the base image
    /// come from `base`; a disk without one needs none.
    pub fn export(&self, out: &mut (impl Write + Seek), base: ReadBase<'_>) -> Result<()> {
        let failed = |source| Error::Io { doing: "writing", path: "the disk's image".into(), source };
        let (mut page, mut at) = (ZERO_PAGE, 0_u64);
        let mut put = |block: u64, page: &Page, at: &mut u64| {
            let offset = block * BLOCK_SIZE as u64;
            let rest = self.record.size_bytes.saturating_sub(offset);
            let length = usize::try_from(rest).unwrap_or(usize::MAX).min(BLOCK_SIZE);
            if retrovisor_guest::is_zero(page) {
                return Ok(());
            }
            if *at != offset {
                out.seek(SeekFrom::Start(offset))?;
            }
            *at = offset + length as u64;
            out.write_all(&page[..length])
        };
        let mut batch: Vec<(u64, ContentId)> = Vec::new();
        for block in 0..self.record.blocks() {
            match self.map.get(block) {
                ContentRef::Removed => {
                    if self.record.base.is_some() {
                        base(block, &mut page).map_err(failed)?;
                        put(block, &page, &mut at).map_err(failed)?;
                    }
                }
                ContentRef::Stored(id) => batch.push((block, id)),
                ContentRef::Zero => {}
            }
            if batch.len() == EXPORT_BLOCKS {
                self.each(&mut batch, |block, page| put(block, page, &mut at).map_err(failed))?;
            }
        }
        self.each(&mut batch, |block, page| put(block, page, &mut at).map_err(failed))?;
        // The end may be in a hole, too.
        let last = self.record.size_bytes.saturating_sub(1);
        if at <= last {
            let mut byte = [0];
            let block = last / BLOCK_SIZE as u64;
            if let ContentRef::Stored(id) = self.map.get(block) {
                byte[0] = self.content(id, block)?[usize::try_from(last % BLOCK_SIZE as u64).unwrap_or(0)];
            } else if self.map.get(block) == BASE && self.record.base.is_some() {
                base(block, &mut page).map_err(failed)?;
                byte[0] = page[usize::try_from(last % BLOCK_SIZE as u64).unwrap_or(0)];
            }
            out.seek(SeekFrom::Start(last)).and_then(|_| out.write_all(&byte)).map_err(failed)?;
        }
        out.flush().map_err(failed)
    }

    /// Calls `each` with the blocks of the batch, ascending, and empties it.
    fn each(
        &self,
        batch: &mut Vec<(u64, ContentId)>,
        mut each: impl FnMut(u64, &Page) -> Result<()>,
    ) -> Result<()> {
        let pages =
            self.store.contents(batch.iter().map(|(_, id)| *id)).map_err(|error| self.named(error))?;
        for (block, id) in batch.drain(..) {
            if let Some(page) = pages.get(&id) {
                each(block, page)?;
            }
        }
        Ok(())
    }

    fn content(&self, id: ContentId, block: u64) -> Result<Arc<Page>> {
        self.store.content(id).map_err(|error| match error {
            Error::Damaged(mut damage) => {
                damage.what = format!("{} (block {block} of disk {})", damage.what, self.record.name);
                self.named(Error::Damaged(damage))
            }
            other => other,
        })
    }

    fn named(&self, error: Error) -> Error {
        match error {
            Error::Damaged(mut damage) => {
                damage.checkpoints.push(self.checkpoint.clone());
                Error::Damaged(damage)
            }
            other => other,
        }
    }
}
