use std::collections::{BTreeMap, HashMap, HashSet};

use retrovisor_guest::Gfn;

use crate::catalogue::Link;
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

/// The tree of checkpoints, by number.
pub(super) struct Tree {
    links: HashMap<CheckpointId, Link>,
    /// Parents first.
    order: Vec<CheckpointId>,
}

/// A checkpoint that stays although its parent is removed.
pub(super) struct Orphan {
    pub(super) checkpoint: Link,
    /// Its ancestors that are removed, nearest first.
    pub(super) gone: Vec<Link>,
    /// The nearest ancestor that stays.
    pub(super) ancestor: Option<Link>,
}

impl Tree {
    pub(super) fn read(store: &Store) -> Result<Self> {
        let links = store.catalogue().links()?;
        let order = links.iter().map(|link| link.checkpoint).collect();
        Ok(Self { links: links.into_iter().map(|link| (link.checkpoint, link)).collect(), order })
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.order.iter().filter_map(|id| self.links.get(id))
    }

    /// The checkpoints that stay although their parents are removed, parents first.
    pub(super) fn orphans(&self, removed: &HashSet<CheckpointId>) -> Vec<Orphan> {
        let is_gone = |link: &&Link| removed.contains(&link.checkpoint);
        let orphan = |link: &Link| {
            let mut gone = Vec::new();
            let mut next = self.parent(link);
            while let Some(parent) = next.filter(is_gone) {
                gone.push(parent.clone());
                next = self.parent(parent);
            }
            Orphan { checkpoint: link.clone(), gone, ancestor: next.cloned() }
        };
        self.links()
            .filter(|link| !removed.contains(&link.checkpoint))
            .filter(|link| self.parent(link).as_ref().is_some_and(is_gone))
            .map(orphan)
            .collect()
    }

    fn parent(&self, link: &Link) -> Option<&Link> {
        // A parent is always older than its child, so that damaged links cannot form a cycle.
        link.parent.filter(|parent| *parent < link.checkpoint).and_then(|parent| self.links.get(&parent))
    }
}

impl Orphan {
    /// All changes since the ancestor that stays: a child's change overrides its parent's.
    pub(super) fn changes(&self, store: &Store) -> Result<BTreeMap<Gfn, ContentRef>> {
        let mut merged: BTreeMap<Gfn, ContentRef> = store.changes(&self.checkpoint)?.into_iter().collect();
        for link in &self.gone {
            for (gfn, content) in store.changes(link)? {
                merged.entry(gfn).or_insert(content);
            }
        }
        Ok(merged)
    }

    /// Whether the full map from which the checkpoint's own map is read is removed with its parents.
    pub(super) fn loses_keyframe(&self, checkpoint: &Link) -> bool {
        let distance = usize::try_from(checkpoint.keyframe_distance).unwrap_or(usize::MAX);
        (1..=self.gone.len()).contains(&distance) || distance > 0 && self.ancestor.is_none()
    }
}
