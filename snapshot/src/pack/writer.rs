use std::sync::Arc;

use super::format::{PACK_HEADER, StoreId, pack_header, seal};
use super::storage::{PackFile, PackStorage};
use crate::catalogue::NewFrame;
use crate::error::{Error, Result};

/// Appends frames to the newest pack. Uncommitted data are truncated.
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
    /// Whether its name is durable.
    named: bool,
}

impl PackWriter {
    /// Continues where the catalogue ends: `packs` are its numbers and committed lengths. Later bytes, which a crash
    /// left, are truncated. A pack longer than `pack_bytes_max` gets no more frames.
    ///
    /// Numbers below `number_min` are not used again, because readers may have such packs in caches although they are
    /// removed.
    pub(crate) fn open(
        storage: Arc<dyn PackStorage>,
        store: StoreId,
        packs: &[(u32, u64)],
        pack_bytes_max: u64,
        number_min: u32,
    ) -> Result<Self> {
        let here = storage.path(0);
        let dir = here.parent().unwrap_or(&here);
        let there = storage.list().map_err(Error::io("listing packs in", dir))?;
        let last = packs.last().copied();
        for &number in there.iter().filter(|number| packs.iter().all(|(known, _)| known != *number)) {
            storage
                .remove(number)
                .map_err(Error::io("removing an unfinished pack", &storage.path(number)))?;
        }
        let mut writer = Self {
            next_number: last.map_or(1, |(number, _)| number + 1).max(number_min),
            storage,
            store,
            pack_bytes_max,
            current: None,
            full: Vec::new(),
        };
        if let Some((number, committed)) = last.filter(|(_, bytes)| *bytes < pack_bytes_max) {
            writer.continue_pack(number, committed)?;
        }
        Ok(writer)
    }

    /// Continues a pack, if it has at least its committed length. A shorter one is damaged: it is not changed, and
    /// verification reports it.
    fn continue_pack(&mut self, number: u32, committed: u64) -> Result<()> {
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

    /// Reserves the number of a pack that is written elsewhere; returns it, and the number after it.
    pub(crate) fn reserve(&mut self) -> (u32, u32) {
        let number = self.next_number;
        self.next_number += 1;
        (number, self.next_number)
    }

    /// Stops appending to this pack, if it is the current one. Only between commits.
    pub(crate) fn close(&mut self, number: u32) {
        self.current.take_if(|open| open.number == number && open.end == open.committed);
    }

    /// The pack that is being written.
    pub(crate) fn current(&self) -> Option<u32> {
        self.current.as_ref().map(|open| open.number)
    }

    /// Appends frames, each with its number of pages, in one write. They are not durable before [`PackWriter::sync`].
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

    /// Waits until everything appended is on the disk, and returns the length of each pack to be committed.
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

    /// The catalogue has committed: the appended data stay.
    pub(crate) fn committed(&mut self) {
        self.full.clear();
        if let Some(open) = &mut self.current {
            open.committed = open.end;
            open.named = true;
        }
    }

    /// The catalogue has not committed: the appended data are truncated. If that fails as well, they stay as bytes
    /// without references until the store is opened again.
    pub(crate) fn abandon(&mut self) {
        for open in self.full.drain(..).chain(self.current.take()) {
            if !open.named {
                if let Err(error) = self.storage.remove(open.number) {
                    tracing::warn!(pack = open.number, %error, "an unfinished pack could not be removed");
                }
                continue;
            }
            // Also when nothing was appended: a failed write may have written a part.
            if let Err(error) = open.file.set_len(open.committed) {
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
    // Its number is not used again by this process, even after a failure.
    *next_number += 1;
    if let Err(error) = file.write_all_at(&pack_header(store, number), 0) {
        let _ = storage.remove(number);
        return Err(Error::io("writing the header of", &path)(error));
    }
    Ok(Open { number, file, committed: 0, end: PACK_HEADER as u64, named: false })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::mutex::lock;
    use crate::pack::{PackReader, compressor, encode_frame};

    /// Packs in memory; a call that is counted down to zero fails.
    #[derive(Default)]
    struct Flaky {
        files: Mutex<BTreeMap<u32, Arc<Bytes>>>,
        calls_left: Arc<AtomicU32>,
    }

    struct Bytes(Mutex<Vec<u8>>, Arc<AtomicU32>);

    fn call(left: &AtomicU32) -> io::Result<()> {
        if left.load(Ordering::Relaxed) > 0 && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    impl PackStorage for Flaky {
        fn list(&self) -> io::Result<Vec<u32>> {
            Ok(lock(&self.files).keys().copied().collect())
        }
        fn create(&self, number: u32) -> io::Result<Arc<dyn PackFile>> {
            call(&self.calls_left)?;
            let file = Arc::new(Bytes(Mutex::default(), Arc::clone(&self.calls_left)));
            assert!(lock(&self.files).insert(number, Arc::clone(&file)).is_none());
            Ok(file)
        }
        fn open(&self, number: u32, _write: bool) -> io::Result<Arc<dyn PackFile>> {
            let file = lock(&self.files).get(&number).map(Arc::clone);
            Ok(file.ok_or(io::ErrorKind::NotFound)?)
        }
        fn remove(&self, number: u32) -> io::Result<()> {
            lock(&self.files).remove(&number).map(drop).ok_or(io::ErrorKind::NotFound.into())
        }
        fn sync_names(&self) -> io::Result<()> {
            call(&self.calls_left)
        }
        fn path(&self, number: u32) -> PathBuf {
            PathBuf::from(format!("/packs/{number}"))
        }
    }

    impl PackFile for Bytes {
        fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
            let bytes = lock(&self.0);
            let from = usize::try_from(offset).unwrap();
            into.copy_from_slice(bytes.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn write_all_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
            let mut bytes = lock(&self.0);
            let from = usize::try_from(offset).unwrap();
            let end = bytes.len().max(from + new.len());
            bytes.resize(end, 0);
            if let Err(error) = call(&self.1) {
                // A write that fails may have written a part.
                bytes[from..from + new.len() / 2].copy_from_slice(&new[..new.len() / 2]);
                return Err(error);
            }
            bytes[from..from + new.len()].copy_from_slice(new);
            Ok(())
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            lock(&self.0).truncate(usize::try_from(length).unwrap());
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(lock(&self.0).len() as u64)
        }
        fn sync(&self) -> io::Result<()> {
            call(&self.1)
        }
    }

    fn frame(seed: u64) -> (Vec<u8>, u32) {
        let noise: Vec<u8> = (0..256_u64)
            .flat_map(|at| blake3::hash(&(seed << 32 | at).to_le_bytes()).as_bytes()[..16].to_vec())
            .collect();
        (encode_frame(&noise, &mut compressor().unwrap()), 1)
    }

    fn readable(storage: &Arc<dyn PackStorage>, frames: &[NewFrame]) {
        let reader = PackReader::new(Arc::clone(storage), [1; 16]);
        for frame in frames {
            reader.read_frame(frame.pack, frame.offset, frame.stored_bytes, frame.pages).unwrap();
        }
    }

    #[test]
    fn whichever_call_fails_what_was_committed_stays_and_nothing_else() {
        // Packs of two frames, so that every commit of three begins a new one.
        for failing in 1..60 {
            let flaky = Arc::new(Flaky::default());
            let left = Arc::clone(&flaky.calls_left);
            let storage: Arc<dyn PackStorage> = flaky;
            let mut writer = PackWriter::open(Arc::clone(&storage), [1; 16], &[], 8_000, 1).unwrap();
            left.store(failing, Ordering::Relaxed);
            let (mut kept, mut lengths) = (Vec::new(), BTreeMap::new());
            let mut failures = 0;
            for round in 0..6 {
                let frames = (0..3).map(|at| writer.append(vec![frame(round * 3 + at)]));
                let done = frames.collect::<Result<Vec<_>>>().and_then(|placed| Ok((placed, writer.sync()?)));
                match done {
                    Ok((placed, packs)) => {
                        writer.committed();
                        kept.extend(placed.into_iter().flatten());
                        lengths.extend(packs);
                    }
                    Err(error) => {
                        assert!(matches!(error, Error::Full { .. }), "{error}");
                        writer.abandon();
                        failures += 1;
                    }
                }
                readable(&storage, &kept);
                for number in storage.list().unwrap() {
                    let length = storage.open(number, false).unwrap().len().unwrap();
                    assert_eq!(lengths.get(&number), Some(&length), "call {failing}, pack {number}");
                }
            }
            let failed = left.swap(0, Ordering::Relaxed) == 0;
            assert_eq!(failures, u32::from(failed), "call {failing}");
            // The next process continues there.
            let packs: Vec<_> = lengths.into_iter().collect();
            let mut writer = PackWriter::open(Arc::clone(&storage), [1; 16], &packs, 8_000, 1).unwrap();
            kept.extend(writer.append(vec![frame(99)]).unwrap());
            writer.sync().unwrap();
            readable(&storage, &kept);
        }
    }
}
