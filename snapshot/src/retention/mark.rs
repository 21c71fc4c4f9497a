use std::collections::HashMap;

use crate::catalogue::Link;
use crate::content::{ContentId, ContentRef};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::store::{Store, pieces};

/// A set of contents: one bit each. Numbers come from the disk: memory is allocated only for existing ones.
#[derive(Clone, Default)]
pub(super) struct ContentSet(HashMap<u64, u64>);

impl ContentSet {
    pub(super) fn insert(&mut self, id: ContentId) {
        *self.0.entry(id.0 / 64).or_default() |= 1 << (id.0 % 64);
    }

    pub(super) fn contains(&self, id: ContentId) -> bool {
        let word = self.0.get(&(id.0 / 64));
        word.is_some_and(|word| word >> (id.0 % 64) & 1 == 1)
    }
}

impl Store {
    /// Adds all contents to which a checkpoint refers directly: its changes (of memory and disks), its full maps and
    /// its state. Fails when any of these is damaged, because the contents to which it refers are then unknown and must
    /// not be treated as garbage. Of a checkpoint that is `lost`, readable contents are kept.
    pub(super) fn mark_checkpoint(&self, link: &Link, is_lost: bool, live: &mut ContentSet) -> Result<()> {
        if is_lost {
            for (_, content) in self.catalogue().changes_at(link.checkpoint)? {
                mark(live, content);
            }
            for (disk, _) in self.catalogue().disks_at(link.checkpoint).unwrap_or_default() {
                for (_, content) in self.catalogue().block_changes_at(link.checkpoint, disk.id)? {
                    mark(live, content);
                }
            }
        }
        match self.mark_whole(link, live) {
            Err(Error::Damaged(_)) if is_lost => Ok(()),
            other => other,
        }
    }

    fn mark_whole(&self, link: &Link, live: &mut ContentSet) -> Result<()> {
        for (_, content) in self.changes(link)? {
            mark(live, content);
        }
        if link.keyframe_distance == 0 {
            let layout = self.catalogue().machine_by_id(link.machine)?.identity.layout;
            for content in self.full_map(link.checkpoint, &layout)?.iter() {
                mark(live, content);
            }
        }
        self.each_disk_content(link.checkpoint, |content| mark(live, content))?;
        self.mark_state(link, live)?;
        Ok(())
    }

    /// Adds the contents of a checkpoint's machine state.
    pub(super) fn mark_state(&self, link: &Link, live: &mut ContentSet) -> Result<()> {
        for section in &self.stored_state(link.checkpoint)?.sections {
            let list = pieces(section).ok_or_else(|| {
                let what = format!("the list of contents of section {} cannot be read", section.format);
                Error::Damaged(Box::new(Damage::catalogue(what)))
            })?;
            for content in list {
                mark(live, content);
            }
        }
        Ok(())
    }
}

pub(super) fn mark(live: &mut ContentSet, content: ContentRef) {
    if let Some(id) = content.stored() {
        live.insert(id);
    }
}
