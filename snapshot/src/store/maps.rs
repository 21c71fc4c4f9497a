use std::sync::Arc;

use retrovisor_guest::{Gfn, MemoryLayout};

use super::opening::Store;
use crate::catalogue::{Keyframe, Link};
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::key::{Hash, Key};
use crate::mutex::lock;
use crate::page_map::{self, PageMap};
use crate::reads::Reads;

impl Store {
    /// The content of every frame at a checkpoint. Its cost does not depend on the length of the history: it is read
    /// from the nearest full map (or one in memory) on.
    pub(crate) fn map(&self, checkpoint: CheckpointId) -> Result<Arc<PageMap>> {
        if let Some(map) = self.kept_map(checkpoint) {
            return Ok(map);
        }
        let mut chain = self.catalogue().chain(checkpoint)?;
        loop {
            let error = match self.map_of(&chain) {
                Ok(map) => return Ok(map),
                Err(error @ Error::Damaged(_)) => error,
                Err(other) => return Err(other),
            };
            // A prune may have joined changes of the chain while it was read: then there is another chain now.
            let now = self.catalogue().chain(checkpoint)?;
            let same = |a: &Link, b: &Link| (a.checkpoint, a.changes_hash) == (b.checkpoint, b.changes_hash);
            if now.len() == chain.len() && now.iter().zip(&chain).all(|(a, b)| same(a, b)) {
                return Err(error);
            }
            chain = now;
        }
    }

    /// The map of the first of a chain's links.
    fn map_of(&self, chain: &[Link]) -> Result<Arc<PageMap>> {
        let checkpoint = chain[0].checkpoint;
        let mut map = None;
        let mut base = chain.len() - 1;
        for (at, link) in chain.iter().enumerate().skip(1) {
            if let Some(kept) = self.kept_map(link.checkpoint) {
                map = Some((*kept).clone());
                base = at;
                break;
            }
        }
        let machine = self.catalogue().machine_by_id(chain[0].machine)?;
        let layout = &machine.identity.layout;
        let keyframes = u64::from(map.is_none());
        self.reads.add(Reads { links: chain.len() as u64, keyframes, ..Reads::default() });
        let mut map = match map {
            Some(map) => map,
            None => self.full_map(chain[base].checkpoint, layout)?,
        };
        for link in chain[..base].iter().rev() {
            let changes = self.changes(link)?;
            self.reads.add(Reads { changes: changes.len() as u64, ..Reads::default() });
            for (gfn, content) in changes {
                let index = layout.index(gfn).and_then(|index| usize::try_from(index).ok());
                let index = index.ok_or_else(|| damaged("a changed page is no memory", link.checkpoint))?;
                map.set(index, content);
            }
        }
        let map = Arc::new(map);
        self.keep_map(checkpoint, Arc::clone(&map));
        Ok(map)
    }

    /// Keeps a map in memory.
    pub(crate) fn keep_map(&self, checkpoint: CheckpointId, map: Arc<PageMap>) {
        lock(&self.maps).put(checkpoint, map);
    }

    /// Drops the maps of removed checkpoints.
    pub(crate) fn forget_maps(&self, checkpoints: &[CheckpointId]) {
        let mut maps = lock(&self.maps);
        for id in checkpoints {
            maps.pop(id);
        }
        drop(maps);
        let mut disk_maps = lock(&self.disk_maps);
        let gone: Vec<_> =
            disk_maps.iter().map(|(key, _)| *key).filter(|(id, _)| checkpoints.contains(id)).collect();
        for key in gone {
            disk_maps.pop(&key);
        }
    }

    /// Drops all cached maps.
    pub(crate) fn forget_all(&self) {
        lock(&self.maps).clear();
    }

    fn kept_map(&self, checkpoint: CheckpointId) -> Option<Arc<PageMap>> {
        lock(&self.maps).get(&checkpoint).map(Arc::clone)
    }

    /// The full map that is stored with a checkpoint, checked.
    pub(crate) fn full_map(&self, checkpoint: CheckpointId, layout: &MemoryLayout) -> Result<PageMap> {
        let keyframe = self.catalogue().keyframe(checkpoint)?;
        let keyframe = keyframe.ok_or_else(|| damaged("the full page map is missing", checkpoint))?;
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        let encoded = page_map::decompress(&keyframe.map, pages)
            .map_err(|_| damaged("the full page map cannot be decompressed", checkpoint))?;
        if map_hash(&self.key, &encoded) != keyframe.hash {
            return Err(damaged("the full page map is not what was written", checkpoint));
        }
        PageMap::decode(&encoded, pages)
            .ok_or_else(|| damaged("the full page map cannot be read", checkpoint))
    }

    /// The frames that changed at a checkpoint, checked.
    pub(crate) fn changes(&self, link: &Link) -> Result<Vec<(Gfn, ContentRef)>> {
        let changes = self.catalogue().changes_at(link.checkpoint)?;
        if changes_hash(&self.key, link.parent, &changes) == link.changes_hash {
            Ok(changes)
        } else {
            Err(damaged("the list of changed pages is not what was written", link.checkpoint))
        }
    }
}

/// Decodes a stored map; `None` if it is not one of this many pages.
pub(crate) fn decode_keyframe(keyframe: &Keyframe, pages: usize) -> Option<PageMap> {
    let encoded = page_map::decompress(&keyframe.map, pages).ok()?;
    PageMap::decode(&encoded, pages)
}

/// A map as it is stored.
pub(crate) fn keyframe(key: &Key, map: &PageMap) -> Result<Keyframe> {
    let encoded = map.encode();
    let compressed = page_map::compress(&encoded).map_err(|source| Error::Io {
        doing: "compressing",
        path: "the page map".into(),
        source,
    })?;
    Ok(Keyframe { hash: map_hash(key, &encoded), map: compressed })
}

/// The hash that protects a list of changed frames, and its parent.
pub(crate) fn changes_hash(key: &Key, parent: Option<CheckpointId>, changes: &[(Gfn, ContentRef)]) -> Hash {
    let mut hasher = key.record("changes");
    hasher.update(&parent.map_or(0, |id| id.0).to_le_bytes());
    let bytes: Vec<u8> = changes
        .iter()
        .flat_map(|(gfn, content)| [gfn.0.to_le_bytes(), content.code().to_le_bytes()])
        .flatten()
        .collect();
    hasher.update(&bytes);
    *hasher.finalize().as_bytes()
}

fn map_hash(key: &Key, encoded: &[u8]) -> Hash {
    *key.record("map").update(encoded).finalize().as_bytes()
}

fn damaged(what: &str, checkpoint: CheckpointId) -> Error {
    Error::Damaged(Box::new(Damage::catalogue(format!("{what} (checkpoint number {checkpoint})"))))
}
