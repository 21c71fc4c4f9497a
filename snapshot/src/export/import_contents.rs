use retrovisor_guest::Page;

use crate::content::{ContentId, ContentRef};
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

/// Adds contents of an import in batches. Each is committed by itself and the content writer is released in between,
/// so that machines that are recorded meanwhile wait for one batch at most. Nothing refers to the contents before the
/// import commits its checkpoints; no compaction removes them meanwhile, because an import holds [`Store::maintain`].
pub(super) struct ImportedContents<'s> {
    store: &'s Store,
    /// The newest checkpoint before the import.
    newest: CheckpointId,
    added: Vec<ContentId>,
    stored_bytes: u64,
}

impl<'s> ImportedContents<'s> {
    /// The caller holds [`Store::maintain`].
    pub(super) fn begin(store: &'s Store) -> Result<Self> {
        store.must_have_room()?;
        let newest = store.catalogue().newest_checkpoint()?;
        Ok(Self { store, newest, added: Vec::new(), stored_bytes: 0 })
    }

    /// Adds a batch of pages, none of which is zero, and returns the content of each.
    pub(super) fn add(&mut self, pages: &[&Page]) -> Result<Vec<ContentRef>> {
        if pages.is_empty() {
            return Ok(Vec::new());
        }
        let store = self.store;
        let mut content_writer = store.content_writer()?;
        let added = content_writer.add(&store.key, store.catalogue(), pages).and_then(|contents| {
            let sealed = content_writer.seal()?;
            store.catalogue().add_contents(sealed.contents())?;
            Ok((contents, sealed))
        });
        match added {
            Ok((contents, sealed)) => {
                content_writer.committed(store.catalogue(), &sealed);
                self.added.extend(sealed.contents.iter().map(|content| content.id));
                self.stored_bytes += sealed.stored_bytes;
                Ok(contents)
            }
            Err(error) => {
                content_writer.abandon();
                Err(error)
            }
        }
    }

    /// Contents that are new in the store.
    pub(super) fn new_contents(&self) -> u64 {
        self.added.len() as u64
    }

    /// Bytes added to the packs.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// The import failed: removes its contents from the catalogue, except those to which a checkpoint refers by now.
    /// Their bytes in the packs are garbage. If this fails, they are contents without references, which a compaction
    /// removes.
    pub(super) fn discard(self) {
        if let Err(error) = self.store.remove_unreferenced(&self.added, self.newest) {
            tracing::warn!(%error, "contents of an import that failed stay until the store is compacted");
        }
    }
}
