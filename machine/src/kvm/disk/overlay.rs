use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use retrovisor_guest::{BLOCK_SIZE, BlockContent, DiskShape, MachineError, Page, ZERO_PAGE};

use super::base::Base;
use super::block_map::BlockMap;
use super::changes::Changes;
use super::config::DiskConfig;
use super::delta::{Change, Stored};
use super::history::{History, Pin};
use super::slot_file::{self, SlotFile};

const SECTOR_BYTES: u64 = 512;
/// Bound on the numbers of slots.
const SIZE_BYTES_MAX: u64 = 8 << 40;

/// A disk that its device and the machine share.
pub(crate) type SharedOverlay = Arc<Mutex<Overlay>>;

/// A disk: the guest's writes, over a base that is never written.
///
/// A written block goes into a slot of a file; after a capture into another slot, so that the captured state's slot
/// does not change.
pub(crate) struct Overlay {
    shape: DiskShape,
    read_only: bool,
    base: Option<Base>,
    slots: SlotFile,
    map: BlockMap,
    history: History,
}

impl Overlay {
    /// A disk that equals its base.
    pub(crate) fn new(name: &str, config: &DiskConfig) -> Result<Self, MachineError> {
        let base = config.base.as_deref().map(Base::open).transpose()?;
        let of_base = base.as_ref().map(|base| base.length_bytes().next_multiple_of(SECTOR_BYTES));
        let size_bytes = config.size_bytes.or(of_base).unwrap_or(0);
        if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(MachineError::Config {
                what: format!("disk {name} has {size_bytes} bytes"),
                help: "Give it a size: a multiple of 512, up to 8 TiB".into(),
            });
        }
        let identity = base.as_ref().map(|base| base.identity().clone());
        let shape = DiskShape { name: name.to_owned(), size_bytes, base: identity };
        Ok(Self {
            read_only: config.read_only,
            base,
            slots: SlotFile::new(&config.changes_dir)?,
            map: BlockMap::new(shape.blocks()),
            history: History::new(),
            shape,
        })
    }

    pub(crate) fn shape(&self) -> &DiskShape {
        &self.shape
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads bytes within the disk.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len())?;
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let (block, skipped) = place(at);
            let stored = self.map.get(block);
            // As far as the data are contiguous.
            let mut bytes = (BLOCK_SIZE - skipped).min(rest.len());
            let mut next = block + 1;
            while bytes < rest.len() && self.map.get(next) == after(stored, next - block) {
                bytes = (bytes + BLOCK_SIZE).min(rest.len());
                next += 1;
            }
            let (piece, later) = rest.split_at_mut(bytes);
            match (stored, &self.base) {
                (Stored::Base, Some(base)) => base.read(at, piece)?,
                (Stored::Base, None) | (Stored::Zero, _) => piece.fill(0),
                (Stored::Slot(slot), _) => slot_file::read(self.slots.file(), slot, skipped, piece)?,
            }
            at += bytes as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes bytes within the disk. After a failure each block has the old or the new bytes.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (block, skipped) = place(at);
            let whole = if skipped == 0 { rest.len() / BLOCK_SIZE * BLOCK_SIZE } else { 0 };
            let length = if whole > 0 { whole } else { (BLOCK_SIZE - skipped).min(rest.len()) };
            let (piece, later) = rest.split_at(length);
            if whole > 0 {
                self.write_blocks(block, piece)?;
            } else {
                let mut page = self.block(block)?;
                page[skipped..skipped + length].copy_from_slice(piece);
                self.write_blocks(block, &page)?;
            }
            at += length as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes zeros within the disk; whole blocks of zeros take no slot.
    pub(crate) fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length).filter(|end| *end <= self.shape.size_bytes);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;
        while at < end {
            let (block, skipped) = place(at);
            let block_end = ((block + 1) * BLOCK_SIZE as u64).min(self.shape.size_bytes);
            let until = block_end.min(end);
            if skipped == 0 && until == block_end {
                self.set(block, Stored::Zero);
            } else {
                // Less than a block.
                let zeros = &ZERO_PAGE[..usize::try_from(until - at).unwrap_or(BLOCK_SIZE)];
                self.write(at, zeros)?;
            }
            at = until;
        }
        Ok(())
    }

    /// Retains the current state and returns its number.
    pub(crate) fn capture(&mut self) -> u64 {
        self.history.capture()
    }

    pub(super) fn kept(&self) -> impl Iterator<Item = u64> + '_ {
        self.history.kept()
    }

    pub(super) fn is_kept(&self, state: u64) -> bool {
        self.history.is_kept(state)
    }

    /// Makes a retained state the current one.
    pub(super) fn go_to(&mut self, state: u64) {
        let mut freed = Vec::new();
        self.history.go_to(state, &mut self.map, &mut freed);
        self.slots.give_back(&mut freed);
    }

    /// Releases a state.
    pub(super) fn release(&mut self, state: u64) {
        let mut freed = Vec::new();
        self.history.release(state, &mut freed);
        self.slots.give_back(&mut freed);
    }

    /// What is needed to read the blocks in which two captured states differ; the rest of the work needs no lock.
    pub(super) fn changes(&self, at: u64, since: Option<u64>) -> Option<impl FnOnce() -> Changes + use<>> {
        let between = self.history.between(since, at)?;
        let (disk, file) = (self.shape.name.clone(), Arc::clone(self.slots.file()));
        let has_base = self.base.is_some();
        Some(move || {
            let (blocks, pin) = between.blocks();
            Changes { disk, file, blocks, returned: 0, has_base, _pin: pin }
        })
    }

    /// What is needed to read the blocks of a captured state.
    pub(super) fn pin(&self, state: u64) -> Option<(Arc<File>, Pin)> {
        Some((Arc::clone(self.slots.file()), self.history.pin(state)?))
    }

    /// Where the blocks of a captured state are, which is pinned.
    pub(super) fn places(&self, state: u64, blocks: Range<u64>) -> Vec<Stored> {
        self.history.places(state, blocks, &self.map)
    }

    /// Reads a block of the base; zeros without one, and past the disk's end.
    pub(super) fn read_base(&self, block: u64, into: &mut Page) -> io::Result<()> {
        let (within, past) = into.split_at_mut(self.block_bytes(block));
        past.fill(0);
        if let Some(base) = &self.base {
            return base.read(block.saturating_mul(BLOCK_SIZE as u64), within);
        }
        within.fill(0);
        Ok(())
    }

    /// Puts contents into a block that is on the disk.
    pub(super) fn put(&mut self, block: u64, content: &BlockContent<'_>) -> io::Result<()> {
        match content {
            BlockContent::Zero => self.set(block, Stored::Zero),
            BlockContent::Base => self.set(block, Stored::Base),
            BlockContent::Data(page) => {
                let mut page = **page;
                page[self.block_bytes(block)..].fill(0);
                self.write_blocks(block, &page)?;
            }
        }
        Ok(())
    }

    /// The whole block; zeros past the disk's end.
    fn block(&self, block: u64) -> io::Result<[u8; BLOCK_SIZE]> {
        let mut page = ZERO_PAGE;
        let bytes = self.block_bytes(block);
        self.read(block * BLOCK_SIZE as u64, &mut page[..bytes])?;
        Ok(page)
    }

    /// Bytes of a block that are on the disk.
    fn block_bytes(&self, block: u64) -> usize {
        let left = self.shape.size_bytes.saturating_sub(block.saturating_mul(BLOCK_SIZE as u64));
        usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_SIZE)
    }

    /// Writes whole blocks.
    fn write_blocks(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        let mut block = first;
        let zero = |from: &[u8]| from.iter().all(|byte| *byte == 0);
        while at < bytes.len() {
            if zero(&bytes[at..at + BLOCK_SIZE]) {
                self.set(block, Stored::Zero);
                (at, block) = (at + BLOCK_SIZE, block + 1);
                continue;
            }
            // As many blocks as fit into consecutive slots.
            let (slot, mut fresh) = self.slot_for(block)?;
            let mut fresh_slots = Vec::from_iter(fresh.then_some(slot));
            let mut count = 1;
            while at + (count + 1) * BLOCK_SIZE <= bytes.len()
                && !zero(&bytes[at + count * BLOCK_SIZE..][..BLOCK_SIZE])
            {
                let next;
                (next, fresh) = self.slot_for(block + count as u64)?;
                if u64::from(next) != u64::from(slot) + count as u64 {
                    if fresh {
                        self.slots.give_back(&mut vec![next]);
                    }
                    break;
                }
                fresh_slots.extend(fresh.then_some(next));
                count += 1;
            }
            let written = self.slots.write(slot, &bytes[at..at + count * BLOCK_SIZE]);
            if let Err(error) = written {
                self.slots.give_back(&mut fresh_slots);
                return Err(error);
            }
            for (block, slot) in (block..).zip(slot..).take(count) {
                self.set(block, Stored::Slot(slot));
            }
            (at, block) = (at + count * BLOCK_SIZE, block + count as u64);
        }
        Ok(())
    }

    /// The slot for a block's write, and whether it is a new one.
    fn slot_for(&mut self, block: u64) -> io::Result<(u32, bool)> {
        match self.history.owned(block) {
            Some(slot) => Ok((slot, false)),
            None => Ok((self.slots.take()?, true)),
        }
    }

    fn set(&mut self, block: u64, new: Stored) {
        let old = self.map.get(block);
        let mut freed = Vec::new();
        self.history.record(block, Change { old, new }, &mut freed);
        self.slots.give_back(&mut freed);
        self.map.set(block, new);
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.shape.size_bytes);
        end.map(|_| ()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Slots in use.
    #[cfg(test)]
    pub(super) fn slots_taken(&self) -> usize {
        self.slots.taken()
    }
}

/// The block of a byte, and the bytes before it there.
fn place(offset: u64) -> (u64, usize) {
    let bytes = BLOCK_SIZE as u64;
    #[expect(clippy::cast_possible_truncation, reason = "less than a block")]
    let skipped = (offset % bytes) as usize;
    (offset / bytes, skipped)
}

/// The place of a block `count` further in the same range.
fn after(stored: Stored, count: u64) -> Stored {
    match stored {
        Stored::Slot(slot) => {
            let slot = u64::from(slot) + count;
            u32::try_from(slot).map_or(Stored::Zero, Stored::Slot)
        }
        other => other,
    }
}
