use std::sync::Arc;

use super::format::{PACK_HEADER, StoreId, pack_header, seal};
use super::storage::{PackFile, PackStorage};
use crate::error::{Error, Result};

/// Bytes gathered before they are written.
const GATHERED: usize = 1 << 20;

/// A pack into which frames of other packs are moved. It is not committed until it is in the catalogue.
pub(crate) struct PackCopy {
    storage: Arc<dyn PackStorage>,
    store: StoreId,
    number: u32,
    file: Arc<dyn PackFile>,
    written: u64,
    gathered: Vec<u8>,
}

impl PackCopy {
    pub(super) fn begin(storage: Arc<dyn PackStorage>, store: StoreId, number: u32) -> Result<Self> {
        let file = storage.create(number).map_err(Error::io("creating", &storage.path(number)))?;
        let gathered = pack_header(&store, number).to_vec();
        debug_assert_eq!(gathered.len(), PACK_HEADER);
        Ok(Self { storage, store, number, file, written: 0, gathered })
    }

    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Appends a frame with a header for its new place, and returns the offset.
    pub(crate) fn append(&mut self, mut frame: Vec<u8>) -> Result<u64> {
        let offset = self.written + self.gathered.len() as u64;
        seal(&mut frame, &self.store, self.number, offset);
        self.gathered.extend_from_slice(&frame);
        if self.gathered.len() >= GATHERED {
            self.flush()?;
        }
        Ok(offset)
    }

    /// Waits until the pack is on the disk, and returns its length.
    pub(crate) fn finish(&mut self) -> Result<u64> {
        self.flush()?;
        let path = self.storage.path(self.number);
        self.file.sync().map_err(Error::io("syncing", &path))?;
        self.storage.sync_names().map_err(Error::io("syncing the names of packs at", &path))?;
        Ok(self.written)
    }

    /// Removes the pack, which is not in the catalogue.
    pub(crate) fn discard(&self) -> Result<()> {
        let path = self.storage.path(self.number);
        self.storage.remove(self.number).map_err(Error::io("removing", &path))
    }

    fn flush(&mut self) -> Result<()> {
        let path = self.storage.path(self.number);
        self.file.write_all_at(&self.gathered, self.written).map_err(Error::io("writing", &path))?;
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}
