//! Full maps for imported machines: an archive has only changes.

use std::collections::HashMap;

use retrovisor_guest::{Gfn, MemoryLayout};

use crate::catalogue::{Keyframe, MachineImport, NewDiskVersion};
use crate::content::ContentRef;
use crate::disk::{DiskMap, DiskRecord, block_changes_hash, decode_disk_keyframe, disk_keyframe};
use crate::error::Result;
use crate::id::{CheckpointId, DiskId};
use crate::key::Key;
use crate::page_map::PageMap;
use crate::recorder::{KEYFRAME_DISTANCE, KEYFRAME_ROWS_MIN};
use crate::store::{changes_hash, decode_keyframe, keyframe};

/// Distance of a disk at a checkpoint from its last full map: checkpoints, and changes.
pub(super) type Known = HashMap<(CheckpointId, DiskId), (u64, u64)>;

/// Adds the changes of a checkpoint, with a full map when the last one is too far away.
pub(super) fn memory(
    key: &Key,
    import: &MachineImport<'_>,
    layout: &MemoryLayout,
    checkpoint: CheckpointId,
    changes: &[(u64, ContentRef)],
) -> Result<()> {
    let list: Vec<_> = changes.iter().map(|(gfn, content)| (Gfn(*gfn), *content)).collect();
    let parent = import.parent(checkpoint)?;
    let hash = changes_hash(key, parent, &list);
    let chain = match parent {
        None => (0, 0),
        Some(parent) => {
            let link = import.link(parent)?;
            (link.keyframe_distance + 1, link.keyframe_rows + list.len() as u64)
        }
    };
    let (distance, rows) = chain;
    if distance != 0 && distance < KEYFRAME_DISTANCE && rows <= layout.pages().max(KEYFRAME_ROWS_MIN) {
        return import.changes(checkpoint, &list, &hash, chain, None);
    }
    let mut map = match parent {
        None => PageMap::zero(pages(layout)),
        Some(parent) => memory_map(import, layout, parent)?,
    };
    put(import, layout, &mut map, &list)?;
    import.changes(checkpoint, &list, &hash, (0, 0), Some(&keyframe(key, &map)?))
}

/// The memory map at a checkpoint that was imported.
fn memory_map(
    import: &MachineImport<'_>,
    layout: &MemoryLayout,
    checkpoint: CheckpointId,
) -> Result<PageMap> {
    let broken = || import.wrong("a chain of checkpoints in it has no beginning");
    let (mut later, mut at) = (Vec::new(), checkpoint);
    let full = loop {
        if let Some(full) = import.keyframe(at)? {
            break full;
        }
        later.push(at);
        at = import.parent(at)?.ok_or_else(broken)?;
    };
    let mut map = decode_keyframe(&full, pages(layout)).ok_or_else(broken)?;
    for link in later.into_iter().rev() {
        put(import, layout, &mut map, &import.changes_at(link)?)?;
    }
    Ok(map)
}

fn put(
    import: &MachineImport<'_>,
    layout: &MemoryLayout,
    map: &mut PageMap,
    changes: &[(Gfn, ContentRef)],
) -> Result<()> {
    for (gfn, content) in changes {
        let index = layout.index(*gfn).and_then(|index| usize::try_from(index).ok());
        let index = index.ok_or_else(|| import.wrong("a page in it is not in the machine's memory"))?;
        map.set(index, *content);
    }
    Ok(())
}

fn pages(layout: &MemoryLayout) -> usize {
    usize::try_from(layout.pages()).unwrap_or(usize::MAX)
}

/// The same for a disk.
pub(super) fn disk(
    key: &Key,
    import: &MachineImport<'_>,
    known: &mut Known,
    disk: &DiskRecord,
    checkpoint: CheckpointId,
    changes: &[(u64, ContentRef)],
) -> Result<()> {
    let parent = import.parent(checkpoint)?;
    let hash = block_changes_hash(key, parent, disk.id, changes);
    // A disk may have been added, or added again, at this checkpoint.
    let above = parent.and_then(|parent| Some((parent, *known.get(&(parent, disk.id))?)));
    let chain = above.map_or((0, 0), |(_, (distance, rows))| (distance + 1, rows + changes.len() as u64));
    let (distance, rows) = chain;
    let mut version = NewDiskVersion {
        disk: disk.id,
        changes,
        keyframe: None,
        keyframe_distance: distance,
        keyframe_rows: rows,
    };
    let full: Keyframe;
    if distance == 0 || distance >= KEYFRAME_DISTANCE || rows > disk.blocks().max(KEYFRAME_ROWS_MIN) {
        let mut map = match above {
            None => DiskMap::base(disk.blocks()),
            Some((parent, _)) => disk_map(import, known, disk, parent)?,
        };
        for (block, content) in changes {
            map.set(*block, *content);
        }
        full = disk_keyframe(key, disk.id, &map)?;
        version.keyframe = Some(&full);
        (version.keyframe_distance, version.keyframe_rows) = (0, 0);
    }
    known.insert((checkpoint, disk.id), (version.keyframe_distance, version.keyframe_rows));
    import.blocks(checkpoint, version, hash)
}

fn disk_map(
    import: &MachineImport<'_>,
    known: &Known,
    disk: &DiskRecord,
    checkpoint: CheckpointId,
) -> Result<DiskMap> {
    let broken = || import.wrong("a chain of a disk in it has no beginning");
    let (mut later, mut at) = (Vec::new(), checkpoint);
    let mut map = loop {
        let (changes, full) = import.blocks_at(at, disk.id)?;
        if let Some(full) = full {
            break decode_disk_keyframe(&full, disk.blocks()).ok_or_else(broken)?;
        }
        later.push(changes);
        at = import.parent(at)?.filter(|at| known.contains_key(&(*at, disk.id))).ok_or_else(broken)?;
    };
    for (block, content) in later.into_iter().rev().flatten() {
        map.set(block, content);
    }
    Ok(map)
}
