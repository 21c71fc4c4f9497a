use std::sync::Arc;

use super::format::{PACK_HEADER, StoreId, pack_header, seal};
use super::storage::{PackFile, PackStorage};
use crate::catalogue::NewFrame;
use crate::error::{Error, Result};

/// A pack longer than this gets no more frames.
const PACK_BYTES_MAX: u64 = 128 << 20;

/// Appends frames to the newest pack. What is not committed is cut off again.
pub(crate) struct PackWriter {
    storage: Arc<dyn PackStorage>,
    store: StoreId,
    pack_bytes_max: u64,
    current: Option<Open>,
    /// Packs begun before `current` since the last commit, still to be synced.
    full: Vec<Open>,
    next_number: u32,
}

/// A pack being written.
struct Open {
    number: u32,
    file: Arc<dyn PackFile>,
    committed: u64,
    end: u64,
    /// Whether its name is safe on the disk.
    named: bool,
}

impl PackWriter {
    /// Takes up where the catalogue says: `packs` are its numbers and committed lengths. What a crash left behind
    /// them is cut off.
    pub(crate) fn open(storage: Arc<dyn PackStorage>, store: StoreId, packs: &[(u32, u64)]) -> Result<Self> {
        let here = storage.path(0);
        let dir = here.parent().unwrap_or(&here);
        let there = storage.list().map_err(Error::io("listing packs in", dir))?;
        let last = packs.last().copied();
        for &number in there.iter().filter(|number| last.is_none_or(|(last, _)| **number > last)) {
            storage
                .remove(number)
                .map_err(Error::io("removing an unfinished pack", &storage.path(number)))?;
        }
        let mut writer = Self {
            next_number: last.map_or(1, |(number, _)| number + 1),
            storage,
            store,
            pack_bytes_max: PACK_BYTES_MAX,
            current: None,
            full: Vec::new(),
        };
        if let Some((number, committed)) = last.filter(|(_, bytes)| *bytes < PACK_BYTES_MAX) {
            writer.take_up(number, committed)?;
        }
        Ok(writer)
    }

    /// Goes on with a pack, if it is as long as it must be. A shorter one is damaged: it is left alone, and
    /// verification speaks of it.
    fn take_up(&mut self, number: u32, committed: u64) -> Result<()> {
        let path = self.storage.path(number);
        let file = match self.storage.open(number, true) {
            Ok(file) => file,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(other) => return Err(Error::io("opening", &path)(other)),
        };
        let length = file.len().map_err(Error::io("measuring", &path))?;
        if length > committed {
            file.set_len(committed).map_err(Error::io("cutting off the torn end of", &path))?;
        }
        if length >= committed {
            self.current = Some(Open { number, file, committed, end: committed, named: true });
        }
        Ok(())
    }

    /// Appends frames, each with its number of pages, in one write. They are not safe before [`PackWriter::sync`].
    pub(crate) fn append(&mut self, frames: Vec<(Vec<u8>, u32)>) -> Result<Vec<NewFrame>> {
        if self.current.as_ref().is_some_and(|open| open.end >= self.pack_bytes_max) {
            self.full.extend(self.current.take());
        }
        let open = match &mut self.current {
            Some(open) => open,
            none => none.insert(begin(&*self.storage, &self.store, &mut self.next_number)?),
        };
        let mut placed = Vec::with_capacity(frames.len());
        let mut bytes = Vec::with_capacity(frames.iter().map(|(frame, _)| frame.len()).sum());
        for (mut frame, pages) in frames {
            let offset = open.end + bytes.len() as u64;
            seal(&mut frame, &self.store, open.number, offset);
            #[expect(clippy::cast_possible_truncation, reason = "a frame has little over 64 KiB at most")]
            placed.push(NewFrame { pack: open.number, offset, stored_bytes: frame.len() as u32, pages });
            bytes.extend_from_slice(&frame);
        }
        let path = self.storage.path(open.number);
        open.file.write_all_at(&bytes, open.end).map_err(Error::io("appending to", &path))?;
        open.end += bytes.len() as u64;
        Ok(placed)
    }

    /// Waits until everything appended is on the disk, and tells up to where each pack belongs to the commit.
    pub(crate) fn sync(&mut self) -> Result<Vec<(u32, u64)>> {
        let mut packs = Vec::new();
        let mut new_names = false;
        for open in self.full.iter().chain(&self.current).filter(|open| open.end > open.committed) {
            open.file.sync().map_err(Error::io("syncing", &self.storage.path(open.number)))?;
            new_names |= !open.named;
            packs.push((open.number, open.end));
        }
        if new_names {
            self.storage.sync_names().map_err(Error::io("syncing", &self.storage.path(0)))?;
        }
        Ok(packs)
    }

    /// The catalogue has committed: what was appended stays.
    pub(crate) fn committed(&mut self) {
        self.full.clear();
        if let Some(open) = &mut self.current {
            open.committed = open.end;
            open.named = true;
        }
    }

    /// The catalogue has not committed: what was appended goes. Where cutting it off fails as well, it stays as
    /// bytes that nobody refers to, until the next opening.
    pub(crate) fn abandon(&mut self) {
        for open in self.full.drain(..).chain(self.current.take()) {
            if !open.named {
                if let Err(error) = self.storage.remove(open.number) {
                    tracing::warn!(pack = open.number, %error, "an unfinished pack could not be removed");
                }
                continue;
            }
            if open.end > open.committed
                && let Err(error) = open.file.set_len(open.committed)
            {
                tracing::warn!(pack = open.number, %error, "unfinished frames could not be cut off");
                continue;
            }
            self.current = Some(Open { end: open.committed, ..open });
        }
    }
}

fn begin(storage: &dyn PackStorage, store: &StoreId, next_number: &mut u32) -> Result<Open> {
    let number = *next_number;
    let path = storage.path(number);
    let file = storage.create(number).map_err(Error::io("creating", &path))?;
    // Whatever happens to it now, its number is not used again by this process.
    *next_number += 1;
    if let Err(error) = file.write_all_at(&pack_header(store, number), 0) {
        let _ = storage.remove(number);
        return Err(Error::io("writing the header of", &path)(error));
    }
    Ok(Open { number, file, committed: 0, end: PACK_HEADER as u64, named: false })
}
