use std::sync::Arc;

use super::map::DiskMap;
use super::record::DiskRecord;
use crate::catalogue::{DiskLink, Keyframe};
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, DiskId};
use crate::key::{Hash, Key};
use crate::mutex::lock;
use crate::store::Store;

/// Level of compression of full maps, which are written rarely.
const LEVEL: i32 = 3;
/// Bound on the bytes of an encoded map for each block that differs from the base, including those for its chunk.
const ENCODED_BYTES_MAX: u64 = 20;

impl Store {
    /// The content of every block of a disk at a checkpoint, checked. Its cost does not depend on the length of the
    /// history.
    pub(crate) fn disk_map(&self, checkpoint: CheckpointId, disk: &DiskRecord) -> Result<Arc<DiskMap>> {
        let kept = |at: CheckpointId| lock(&self.disk_maps).get(&(at, disk.id)).map(Arc::clone);
        if let Some(map) = kept(checkpoint) {
            return Ok(map);
        }
        let chain = self.catalogue().disk_chain(checkpoint, disk.id)?;
        let mut map = None;
        let mut later = Vec::new();
        for link in &chain {
            if let Some(found) = kept(link.checkpoint) {
                map = Some((*found).clone());
                break;
            }
            if link.keyframe_distance == 0 {
                map = Some(self.disk_full_map(link.checkpoint, disk)?);
                break;
            }
            later.push(link);
        }
        let mut map =
            map.ok_or_else(|| damaged("the chain of block maps ends without a full map", checkpoint))?;
        for link in later.into_iter().rev() {
            for (block, content) in self.block_changes(link)? {
                if block >= map.blocks() {
                    return Err(damaged("a changed block is not on the disk", link.checkpoint));
                }
                map.set(block, content);
            }
        }
        let map = Arc::new(map);
        self.keep_disk_map(checkpoint, disk.id, Arc::clone(&map));
        Ok(map)
    }

    /// Caches a map.
    pub(crate) fn keep_disk_map(&self, checkpoint: CheckpointId, disk: DiskId, map: Arc<DiskMap>) {
        lock(&self.disk_maps).put((checkpoint, disk), map);
    }

    /// The full map of a disk that is stored with a checkpoint, checked.
    pub(crate) fn disk_full_map(&self, checkpoint: CheckpointId, disk: &DiskRecord) -> Result<DiskMap> {
        let keyframe = self.catalogue().disk_keyframe(checkpoint, disk.id)?;
        let keyframe = keyframe.ok_or_else(|| damaged("the full block map is missing", checkpoint))?;
        let longest = disk.blocks().saturating_add(1024).saturating_mul(ENCODED_BYTES_MAX);
        let encoded = decompress(&keyframe.map, longest)
            .ok_or_else(|| damaged("the full block map cannot be decompressed", checkpoint))?;
        if map_hash(&self.key, disk.id, &encoded) != keyframe.hash {
            return Err(damaged("the full block map is not what was written", checkpoint));
        }
        DiskMap::decode(&encoded, disk.blocks())
            .ok_or_else(|| damaged("the full block map cannot be read", checkpoint))
    }

    /// The blocks of a disk that changed at a checkpoint, checked.
    pub(crate) fn block_changes(&self, link: &DiskLink) -> Result<Vec<(u64, ContentRef)>> {
        let changes = self.catalogue().block_changes_at(link.checkpoint, link.disk)?;
        if block_changes_hash(&self.key, link.parent, link.disk, &changes) == link.changes_hash {
            Ok(changes)
        } else {
            Err(damaged("the list of changed blocks is not what was written", link.checkpoint))
        }
    }
}

/// Decompresses, allocating memory only for data that are decompressed.
fn decompress(bytes: &[u8], longest: u64) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?;
    let read = decoder.take(longest.saturating_add(1)).read_to_end(&mut out).ok()?;
    (read as u64 <= longest).then_some(out)
}

/// Decodes a stored map; `None` if it is not one of this many blocks.
pub(crate) fn decode_disk_keyframe(keyframe: &Keyframe, blocks: u64) -> Option<DiskMap> {
    let longest = blocks.saturating_add(1024).saturating_mul(ENCODED_BYTES_MAX);
    DiskMap::decode(&decompress(&keyframe.map, longest)?, blocks)
}

/// A map as it is stored.
pub(crate) fn disk_keyframe(key: &Key, disk: DiskId, map: &DiskMap) -> Result<Keyframe> {
    let encoded = map.encode();
    let compressed = zstd::bulk::compress(&encoded, LEVEL).map_err(|source| Error::Io {
        doing: "compressing",
        path: "the block map".into(),
        source,
    })?;
    Ok(Keyframe { hash: map_hash(key, disk, &encoded), map: compressed })
}

/// The hash that protects the list of a disk's changed blocks, and its parent.
pub(crate) fn block_changes_hash(
    key: &Key,
    parent: Option<CheckpointId>,
    disk: DiskId,
    changes: &[(u64, ContentRef)],
) -> Hash {
    let mut hasher = key.record("blocks");
    hasher.update(&parent.map_or(0, |id| id.0).to_le_bytes());
    hasher.update(&disk.0.to_le_bytes());
    let bytes: Vec<u8> = changes
        .iter()
        .flat_map(|(block, content)| [block.to_le_bytes(), content.code().to_le_bytes()])
        .flatten()
        .collect();
    hasher.update(&bytes);
    *hasher.finalize().as_bytes()
}

fn map_hash(key: &Key, disk: DiskId, encoded: &[u8]) -> Hash {
    *key.record("block map").update(&disk.0.to_le_bytes()).update(encoded).finalize().as_bytes()
}

fn damaged(what: &str, checkpoint: CheckpointId) -> Error {
    Error::Damaged(Box::new(Damage::catalogue(format!("{what} (checkpoint number {checkpoint})"))))
}
