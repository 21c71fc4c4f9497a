use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::plan::{RepairAction, RepairPlan};
use crate::catalogue::prefix;
use crate::content::ContentId;
use crate::damage::Damage;
use crate::error::Result;
use crate::key::Hash;
use crate::store::Store;

impl Store {
    /// Searches all packs for damaged contents. Returns those found.
    pub(super) fn plan_contents(&self, damaged: &[Damage], plan: &mut RepairPlan) -> Result<BTreeSet<u64>> {
        let bad: BTreeSet<u64> = damaged.iter().filter_map(|damage| damage.content).collect();
        let mut found = BTreeSet::new();
        if bad.is_empty() {
            return Ok(found);
        }
        let mut by_hash: HashMap<Hash, Vec<u64>> = HashMap::new();
        for (id, hash) in self.catalogue().hashes(&bad)? {
            by_hash.entry(hash).or_default().push(id.0);
        }
        // A content whose hash is lost is identified by the part of the hash in the index.
        let mut by_prefix: HashMap<u64, Vec<u64>> = HashMap::new();
        for (id, part) in self.catalogue().indexed_prefixes(&bad)? {
            by_prefix.entry(part).or_default().push(id.0);
        }
        let mut known: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for frame in self.catalogue().frames()? {
            known.entry(frame.pack).or_default().push(frame.offset);
        }
        let mut places: BTreeMap<u64, RepairAction> = BTreeMap::new();
        for pack in self.packs.list()? {
            let mut offsets = known.remove(&pack).unwrap_or_default();
            offsets.sort_unstable();
            self.packs.scan(pack, &offsets, |offset, stored_bytes, pages, frame| {
                for slot in 0..pages {
                    let Some(page) = frame.page(slot) else { continue };
                    let hash = self.key.page(page);
                    let same = by_hash.get(&hash).into_iter().flatten();
                    let same = same.chain(by_prefix.get(&prefix(&hash)).into_iter().flatten());
                    for content in same {
                        let content = *content;
                        places.entry(content).or_insert(RepairAction::Relink {
                            content,
                            pack,
                            offset,
                            stored_bytes,
                            pages,
                            slot,
                        });
                    }
                }
            })?;
        }
        for (content, action) in places {
            let what = damaged.iter().find(|damage| damage.content == Some(content));
            plan.add(what.map_or_else(String::new, ToString::to_string), action);
            found.insert(content);
        }
        Ok(found)
    }

    /// Packs whose rows do not cover their frames.
    pub(super) fn plan_packs(&self, plan: &mut RepairPlan) -> Result<()> {
        let rows: BTreeMap<u32, u64> = self.catalogue().packs()?.into_iter().collect();
        let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
        for frame in self.catalogue().frames()? {
            let end = frame.offset.saturating_add(frame.stored_bytes.into());
            let known = rows.get(&frame.pack).copied();
            // Only readable frames count: a row for other bytes is damaged itself.
            if known.is_none_or(|bytes| end > bytes)
                && self.packs.read_frame(frame.pack, frame.offset, frame.stored_bytes, frame.pages).is_ok()
            {
                let furthest = ends.entry(frame.pack).or_default();
                *furthest = end.max(*furthest);
            }
        }
        for (pack, committed_bytes) in ends {
            let damage = format!("the catalogue does not know all that belongs to pack {pack:06}");
            plan.add(damage, RepairAction::RebuildPack { pack, committed_bytes });
        }
        Ok(())
    }

    /// Compares the index of hashes with the contents.
    pub(super) fn plan_index(&self, plan: &mut RepairPlan) -> Result<()> {
        let wrong = self.catalogue().wrong_index_rows()?;
        if wrong > 0 {
            let damage = format!("{wrong} rows of the index of hashes are wrong or missing");
            plan.add(damage, RepairAction::RebuildIndex);
        }
        Ok(())
    }
}

/// The content, by number.
pub(super) const fn content(id: u64) -> ContentId {
    ContentId(id)
}
