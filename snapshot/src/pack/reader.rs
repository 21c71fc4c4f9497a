use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use retrovisor_guest::{PAGE_SIZE, Page};

use super::copy::PackCopy;
use super::format::{
    FRAME_HEADER, FRAME_MAX, PACK_HEADER, StoreId, check_pack_header, decode_frame, frame_shape,
};
use super::storage::{PackFile, PackStorage};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::mutex::lock;

/// Decompressed frames kept: a reader of one page often reads its neighbours.
const FRAMES_KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Packs kept open.
const FILES_KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Reads frames of packs.
pub(crate) struct PackReader {
    storage: Arc<dyn PackStorage>,
    store: StoreId,
    files: Mutex<LruCache<u32, Arc<dyn PackFile>>>,
    frames: Mutex<LruCache<(u32, u64), Arc<Frame>>>,
}

/// The pages of a frame. They are unverified until they are hashed.
pub(crate) struct Frame(Vec<u8>);

impl Frame {
    /// A page by its place in the frame.
    pub(crate) fn page(&self, slot: u32) -> Option<&Page> {
        let from = (slot as usize).checked_mul(PAGE_SIZE)?;
        self.0.get(from..)?.first_chunk()
    }
}

impl PackReader {
    pub(crate) fn new(storage: Arc<dyn PackStorage>, store: StoreId) -> Self {
        Self {
            storage,
            store,
            files: Mutex::new(LruCache::new(FILES_KEPT)),
            frames: Mutex::new(LruCache::new(FRAMES_KEPT)),
        }
    }

    /// A frame, through the cache.
    pub(crate) fn frame(&self, pack: u32, offset: u64, stored_bytes: u32, pages: u32) -> Result<Arc<Frame>> {
        if let Some(frame) = lock(&self.frames).get(&(pack, offset)) {
            return Ok(Arc::clone(frame));
        }
        let frame = Arc::new(self.read_frame(pack, offset, stored_bytes, pages)?);
        lock(&self.frames).put((pack, offset), Arc::clone(&frame));
        Ok(frame)
    }

    /// A frame, from the disk.
    pub(crate) fn read_frame(&self, pack: u32, offset: u64, stored_bytes: u32, pages: u32) -> Result<Frame> {
        Ok(self.read_whole(pack, offset, stored_bytes, pages)?.1)
    }

    /// A pack to move frames into.
    pub(crate) fn begin_copy(&self, number: u32) -> Result<PackCopy> {
        PackCopy::begin(Arc::clone(&self.storage), self.store, number)
    }

    /// Removes a pack that is no longer in the catalogue. Its number is not used again, so that cached frames of
    /// readers stay valid.
    pub(crate) fn remove(&self, pack: u32) -> Result<()> {
        lock(&self.files).pop(&pack);
        let path = self.storage.path(pack);
        match self.storage.remove(pack) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("removing", &path)(error))
            }
            _ => self.storage.sync_names().map_err(Error::io("syncing the names of packs at", &path)),
        }
    }

    /// The numbers of the packs on the disk.
    pub(crate) fn list(&self) -> Result<Vec<u32>> {
        self.storage.list().map_err(Error::io("listing packs at", &self.storage.path(0)))
    }

    /// Calls `each` with every readable frame of a pack: offset, stored bytes, pages, frame. `known` are offsets of
    /// known frames, ascending: where the walk from frame to frame fails, it continues at the next of them. An
    /// unreadable pack has no frames.
    pub(crate) fn scan(
        &self,
        pack: u32,
        known: &[u64],
        mut each: impl FnMut(u64, u32, u32, &Frame),
    ) -> Result<()> {
        let file = match self.file(pack) {
            Ok(file) => file,
            Err(Error::Damaged(_)) => return Ok(()),
            Err(other) => return Err(other),
        };
        let mut at = PACK_HEADER as u64;
        loop {
            let mut header = [0; FRAME_HEADER];
            let found = match file.read_exact_at(&mut header, at) {
                Ok(()) => frame_shape(&header, &self.store, pack, at),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
                Err(error) => return Err(Error::io("reading", &self.storage.path(pack))(error)),
            };
            if let Some((stored_bytes, pages)) = found {
                match self.read_frame(pack, at, stored_bytes, pages) {
                    Ok(frame) => each(at, stored_bytes, pages, &frame),
                    Err(Error::Damaged(_)) => (),
                    Err(other) => return Err(other),
                }
                at += u64::from(stored_bytes);
            } else {
                let next = known.partition_point(|offset| *offset <= at);
                let Some(offset) = known.get(next) else { return Ok(()) };
                at = *offset;
            }
        }
    }

    /// A frame from the disk: its stored bytes, and its pages.
    pub(crate) fn read_whole(
        &self,
        pack: u32,
        offset: u64,
        stored_bytes: u32,
        pages: u32,
    ) -> Result<(Vec<u8>, Frame)> {
        let damaged = |what: &str| {
            let what = what.to_owned();
            Error::Damaged(Box::new(Damage {
                what,
                pack: Some(pack),
                offset: Some(offset),
                ..Damage::default()
            }))
        };
        if stored_bytes as usize > FRAME_MAX {
            return Err(damaged("the catalogue has a frame that is too long"));
        }
        let file = self.file(pack)?;
        let mut bytes = vec![0; stored_bytes as usize];
        file.read_exact_at(&mut bytes, offset).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                damaged("the pack ends before this frame does")
            } else {
                Error::io("reading", &self.storage.path(pack))(error)
            }
        })?;
        let raw = decode_frame(&bytes, pages as usize, &self.store, pack, offset).map_err(damaged)?;
        Ok((bytes, Frame(raw)))
    }

    /// The length of a pack in bytes; an error when it is missing or not a pack of this store.
    pub(crate) fn pack_bytes(&self, pack: u32) -> Result<u64> {
        let path = self.storage.path(pack);
        self.file(pack)?.len().map_err(Error::io("measuring", &path))
    }

    fn file(&self, pack: u32) -> Result<Arc<dyn PackFile>> {
        if let Some(file) = lock(&self.files).get(&pack) {
            return Ok(Arc::clone(file));
        }
        let path = self.storage.path(pack);
        let damaged = |what| Error::Damaged(Box::new(Damage { what, pack: Some(pack), ..Damage::default() }));
        let file = self.storage.open(pack, false).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                damaged(format!("the pack {} is missing", path.display()))
            } else {
                Error::io("opening", &path)(error)
            }
        })?;
        let mut header = [0; PACK_HEADER];
        file.read_exact_at(&mut header, 0).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                damaged("the pack ends within its header".into())
            } else {
                Error::io("reading", &path)(error)
            }
        })?;
        if let Some(what) = check_pack_header(&header, &self.store, pack) {
            return Err(damaged(what));
        }
        lock(&self.files).put(pack, Arc::clone(&file));
        Ok(file)
    }
}
