use std::collections::{BTreeMap, HashMap, HashSet};

use retrovisor_guest::{Gfn, MemoryLayout};

use super::plan::{RepairAction, RepairPlan};
use crate::catalogue::Link;
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::page_map::PageMap;
use crate::store::{Store, changes_hash};

/// Bound on the checkpoints examined for a lost parent.
const PARENTS_MAX: usize = 20_000;
/// Bound on the checkpoints between a lost list and the full map from which it may follow.
const DISTANCE_MAX: usize = 256;

/// Determines which lists and maps can be derived.
#[derive(Default)]
pub(super) struct Lists {
    saved: HashSet<String>,
}

/// A list of changes.
pub(super) type Changes = Vec<(Gfn, ContentRef)>;

impl Lists {
    /// Checks every list of changes and every full map.
    pub(super) fn plan(store: &Store, plan: &mut RepairPlan) -> Result<Self> {
        let mut lists = Self::default();
        let links = store.catalogue().links()?;
        for link in &links {
            if let Err(Error::Damaged(damage)) = store.changes(link) {
                let action = match parent_of(store, &links, link)? {
                    Some(parent) => Some(RepairAction::Reparent { checkpoint: link.checkpoint, parent }),
                    None => derive_changes(store, &links, link)?
                        .map(|_| RepairAction::RebuildChanges { checkpoint: link.checkpoint }),
                };
                lists.add(store, plan, link, &damage, action)?;
            }
            if link.keyframe_distance == 0 {
                let layout = layout_of(store, link)?;
                if let Err(Error::Damaged(damage)) = store.full_map(link.checkpoint, &layout) {
                    let action = derive_map(store, link)?
                        .map(|_| RepairAction::RebuildMap { checkpoint: link.checkpoint });
                    lists.add(store, plan, link, &damage, action)?;
                }
            }
        }
        Ok(lists)
    }

    fn add(
        &mut self,
        store: &Store,
        plan: &mut RepairPlan,
        link: &Link,
        damage: &Damage,
        action: Option<RepairAction>,
    ) -> Result<()> {
        if let Some(action) = action {
            let name = store.catalogue().checkpoint(link.checkpoint)?.name;
            plan.add(format!("{} of checkpoint {name}", damage.what), action);
            self.saved.insert(format!("{name}: {}", damage.what));
        }
        Ok(())
    }

    /// Whether this damage is covered by the plan.
    pub(super) fn is_saved(&self, damage: &Damage) -> bool {
        matches!(&damage.checkpoints[..], [name] if self.saved.contains(&format!("{name}: {}", damage.what)))
    }
}

pub(super) fn layout_of(store: &Store, link: &Link) -> Result<MemoryLayout> {
    Ok(store.catalogue().machine_by_id(link.machine)?.identity.layout)
}

/// The parent that an undamaged list belongs to, if it is not the one in the catalogue.
fn parent_of(store: &Store, links: &[Link], link: &Link) -> Result<Option<CheckpointId>> {
    let changes = store.catalogue().changes_at(link.checkpoint)?;
    let older = links.iter().rev().filter(|other| other.checkpoint < link.checkpoint).take(PARENTS_MAX);
    let fits =
        |parent: &&Link| changes_hash(&store.key, Some(parent.checkpoint), &changes) == link.changes_hash;
    Ok(older.into_iter().find(fits).map(|parent| parent.checkpoint))
}

/// The list of changes at a checkpoint, if it follows from full maps; checked against its hash.
pub(super) fn derive_changes(store: &Store, links: &[Link], link: &Link) -> Result<Option<Changes>> {
    let layout = layout_of(store, link)?;
    let before = match link.parent {
        None => PageMap::zero(usize::try_from(layout.pages()).unwrap_or(usize::MAX)),
        Some(parent) => match store.map(parent) {
            Ok(map) => (*map).clone(),
            Err(Error::Damaged(_)) => return Ok(None),
            Err(other) => return Err(other),
        },
    };
    let stored: BTreeMap<Gfn, ContentRef> =
        store.catalogue().changes_at(link.checkpoint)?.into_iter().collect();
    let children: HashMap<CheckpointId, Vec<&Link>> = links.iter().fold(HashMap::new(), |mut all, link| {
        if let Some(parent) = link.parent {
            all.entry(parent).or_insert_with(Vec::new).push(link);
        }
        all
    });
    // Down every branch to the next full map: it has the contents that were not written again in between.
    let mut paths = vec![(link, HashSet::<Gfn>::new(), 0)];
    while let Some((at, written, distance)) = paths.pop() {
        if at.keyframe_distance == 0
            && let Ok(after) = store.full_map(at.checkpoint, &layout)
        {
            let differ = before
                .diff(&after)
                .filter_map(|(index, _, content)| Some((layout.gfn(index as u64)?, content)));
            let mut found: BTreeMap<Gfn, ContentRef> =
                differ.filter(|(gfn, _)| !written.contains(gfn)).collect();
            // Pages that were written again can only be taken from the damaged list itself.
            found.extend(stored.iter().filter(|(gfn, _)| written.contains(gfn)).map(|(gfn, to)| (*gfn, *to)));
            let list: Changes = found.into_iter().collect();
            if changes_hash(&store.key, link.parent, &list) == link.changes_hash {
                return Ok(Some(list));
            }
            continue;
        }
        if distance >= DISTANCE_MAX {
            continue;
        }
        for child in children.get(&at.checkpoint).into_iter().flatten() {
            if let Ok(changes) = store.changes(child) {
                let mut written = written.clone();
                written.extend(changes.into_iter().map(|(gfn, _)| gfn));
                paths.push((child, written, distance + 1));
            }
        }
    }
    Ok(None)
}

/// The full map at a checkpoint, if it follows from the changes that lead to it.
pub(super) fn derive_map(store: &Store, link: &Link) -> Result<Option<PageMap>> {
    let layout = layout_of(store, link)?;
    let before = match link.parent {
        None => PageMap::zero(usize::try_from(layout.pages()).unwrap_or(usize::MAX)),
        Some(parent) => match store.map(parent) {
            Ok(map) => (*map).clone(),
            Err(Error::Damaged(_)) => return Ok(None),
            Err(other) => return Err(other),
        },
    };
    let Ok(changes) = store.changes(link) else { return Ok(None) };
    let mut map = before;
    for (gfn, content) in changes {
        let Some(index) = layout.index(gfn).and_then(|index| usize::try_from(index).ok()) else {
            return Ok(None);
        };
        map.set(index, content);
    }
    Ok(Some(map))
}
