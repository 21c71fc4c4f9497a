use std::collections::{BTreeMap, BTreeSet, HashMap};

use retrovisor_guest::Gfn;

use super::contents::missing;
use super::opening::Store;
use super::states::pieces;
use crate::catalogue::{ContentPlace, Link};
use crate::content::{ContentId, ContentRef};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// Contents read between two reports of progress.
const STEP: usize = 4096;
/// Page maps are compared with the stored full maps; a difference in more pages than this is not listed in full.
const LISTED_MAX: usize = 1000;

/// Progress of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Contents checked.
    pub pages_done: u64,
    /// Contents in all.
    pub pages_total: u64,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Contents read and hashed.
    pub pages_checked: u64,
    /// Bytes read from packs.
    pub bytes: u64,
    /// Checkpoints whose page maps and states were checked.
    pub checkpoints_checked: u64,
    /// All damage.
    pub damaged: Vec<Damage>,
}

/// The state of the contents once all are read.
#[derive(Default)]
struct Contents {
    /// Those that are in the catalogue: a bit each.
    there: HashMap<u64, u64>,
    /// Those that are damaged, or missing although something refers to them.
    bad: BTreeMap<ContentId, Damage>,
}

impl Contents {
    fn add(&mut self, id: ContentId) {
        *self.there.entry(id.0 / 64).or_default() |= 1 << (id.0 % 64);
    }

    /// The damage of a content that something refers to, if it has any.
    fn damage(&mut self, id: ContentId) -> Option<&mut Damage> {
        let word = self.there.get(&(id.0 / 64));
        if word.is_none_or(|word| word >> (id.0 % 64) & 1 == 0)
            && let Error::Damaged(damage) = missing(id)
        {
            self.bad.entry(id).or_insert(*damage);
        }
        self.bad.get_mut(&id)
    }
}

impl Store {
    /// Checks the catalogue, every content in the packs, every page map and every state. Damage is a result, not an
    /// error: errors are what prevents checking.
    pub fn verify(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        report.damaged.extend(self.catalogue().integrity()?.into_iter().map(Damage::catalogue));
        self.verify_packs(&mut report)?;
        // Read first: what these refer to is among the contents that are read next, also when more come meanwhile.
        let links = self.catalogue().links()?;
        let mut contents = self.verify_contents(&mut report, progress)?;
        self.verify_checkpoints(&links, &mut report, &mut contents)?;
        report.damaged.extend(contents.bad.into_values());
        Ok(report)
    }

    /// Every pack exists and has at least its committed length.
    fn verify_packs(&self, report: &mut VerifyReport) -> Result<()> {
        for (pack, committed) in self.catalogue().packs()? {
            let found = damage_of(self.packs.pack_bytes(pack))?;
            // A compaction may have replaced it just now.
            if found.is_err() && !self.catalogue().packs()?.iter().any(|(number, _)| *number == pack) {
                continue;
            }
            let short = |length| {
                let what = format!("the pack has {length} bytes, {committed} belong to checkpoints");
                Damage { what, pack: Some(pack), offset: Some(length), ..Damage::default() }
            };
            match found {
                Ok(length) if length >= committed => (),
                Ok(length) => report.damaged.push(short(length)),
                Err(damage) => report.damaged.push(damage),
            }
        }
        Ok(())
    }

    /// Checks every content. Returns the damaged ones.
    fn verify_contents(
        &self,
        report: &mut VerifyReport,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<Contents> {
        let mut contents = Contents::default();
        for id in self.catalogue().contents_without_frame()? {
            contents.damage(id);
        }
        let pages_total = self.catalogue().content_count()?;
        let mut after = ContentId(0);
        loop {
            let places = self.catalogue().places_after(after, STEP)?;
            let Some(last) = places.last() else { break };
            after = last.id;
            let frames: Vec<&[ContentPlace]> =
                places.chunk_by(|a, b| (a.pack, a.offset) == (b.pack, b.offset)).collect();
            for checked in crate::parallel::map(&frames, 4, |group| self.verify_frame(group)) {
                let (bytes, damaged) = checked?;
                report.bytes += bytes;
                contents.bad.extend(damaged);
            }
            for place in &places {
                contents.add(place.id);
            }
            report.pages_checked += places.len() as u64;
            progress(VerifyProgress { pages_done: report.pages_checked, pages_total });
        }
        Ok(contents)
    }

    fn verify_frame(&self, group: &[ContentPlace]) -> Result<(u64, Vec<(ContentId, Damage)>)> {
        let Some(first) = group.first() else { return Ok((0, Vec::new())) };
        let frame = self.packs.read_frame(first.pack, first.offset, first.stored_bytes, first.pages);
        let frame = match damage_of(frame)? {
            Ok(frame) => frame,
            Err(damage) => {
                let of = |place: &ContentPlace| Damage { content: Some(place.id.0), ..damage.clone() };
                let damaged = group.iter().map(|place| (place.id, of(place))).collect();
                return Ok((0, self.still_damaged(group, damaged)?));
            }
        };
        let mut damaged = Vec::new();
        for place in group {
            if let Err(damage) = damage_of(self.check(place, &frame))? {
                damaged.push((place.id, damage));
            }
        }
        let damaged = self.still_damaged(group, damaged)?;
        Ok((first.stored_bytes.into(), damaged))
    }

    /// Leaves out contents that are undamaged elsewhere, because a compaction moved or removed them in between.
    fn still_damaged(
        &self,
        group: &[ContentPlace],
        damaged: Vec<(ContentId, Damage)>,
    ) -> Result<Vec<(ContentId, Damage)>> {
        let mut still = Vec::new();
        for (id, damage) in damaged {
            let Some(place) = group.iter().find(|place| place.id == id) else { continue };
            let gone = self.catalogue().places(&[id])?.is_empty();
            if gone {
                continue;
            }
            if damage_of(self.read_moved(&[*place], Error::Damaged(Box::new(damage.clone()))))?.is_err() {
                still.push((id, damage));
            }
        }
        Ok(still)
    }

    /// Every checkpoint has a page map, whose contents exist, and a state. Adds to the bad contents what they touch.
    fn verify_checkpoints(
        &self,
        links: &[Link],
        report: &mut VerifyReport,
        contents: &mut Contents,
    ) -> Result<()> {
        // For each affected checkpoint: the frames with a bad content, its own and inherited ones.
        let mut touched: BTreeMap<CheckpointId, BTreeMap<Gfn, ContentId>> = BTreeMap::new();
        for link in links {
            let changes = match damage_of(self.changes(link))? {
                Ok(changes) => changes,
                // Pruned meanwhile, or its parents were.
                Err(_) if self.catalogue().same_link(link)?.is_none() => continue,
                Err(damage) => {
                    report.checkpoints_checked += 1;
                    self.report(report, link, Damage { breaks_chain: true, ..damage })?;
                    continue;
                }
            };
            report.checkpoints_checked += 1;
            let is_first = link.parent.is_none_or(|parent| parent >= link.checkpoint);
            if is_first && link.keyframe_distance > 0 && self.catalogue().same_link(link)?.is_some() {
                let what = "the chain of parents ends without a full map";
                self.report(report, link, Damage { breaks_chain: true, ..Damage::catalogue(what) })?;
            }
            let mut frames = link.parent.and_then(|parent| touched.get(&parent)).cloned().unwrap_or_default();
            for (gfn, content) in &changes {
                frames.remove(gfn);
                let Some(id) = content.stored() else { continue };
                if contents.damage(id).is_some() {
                    frames.insert(*gfn, id);
                }
            }
            let name = match self.catalogue().checkpoint(link.checkpoint) {
                Ok(record) => record.name,
                Err(Error::NotFound { .. }) => continue,
                Err(other) => return Err(other),
            };
            for (gfn, id) in &frames {
                if let Some(damage) = contents.bad.get_mut(id) {
                    note(&mut damage.checkpoints, &name);
                    if !damage.gfns.contains(gfn) {
                        damage.gfns.push(*gfn);
                    }
                }
            }
            if !frames.is_empty() {
                touched.insert(link.checkpoint, frames);
            }
            let mut on_disks = Vec::new();
            for damage in self.verify_disks(link, |disk, _, content| {
                if let Some(id) = content.stored() {
                    on_disks.push((id, format!("{name}/disk {}", disk.name)));
                }
            })? {
                self.report(report, link, damage)?;
            }
            for (id, place) in on_disks {
                if let Some(damage) = contents.damage(id) {
                    note(&mut damage.checkpoints, &name);
                    note(&mut damage.sections, &place);
                }
            }
            self.verify_full_map(report, link)?;
            self.verify_state(report, link, &name, contents)?;
        }
        Ok(())
    }

    /// A stored full map equals the result of the changes that lead to it.
    fn verify_full_map(&self, report: &mut VerifyReport, link: &Link) -> Result<()> {
        if link.keyframe_distance > 0 {
            return Ok(());
        }
        let layout = self.catalogue().machine_by_id(link.machine)?.identity.layout;
        let stored = match damage_of(self.full_map(link.checkpoint, &layout))? {
            Ok(map) => map,
            Err(damage) => return self.report(report, link, Damage { breaks_chain: true, ..damage }),
        };
        let mut computed = match link.parent {
            None => crate::page_map::PageMap::zero(usize::try_from(layout.pages()).unwrap_or(usize::MAX)),
            // A damaged parent is reported separately.
            Some(parent) => match damage_of(self.map(parent))? {
                Ok(map) => (*map).clone(),
                Err(_) => return Ok(()),
            },
        };
        for (gfn, content) in self.changes(link)? {
            if let Some(index) = layout.index(gfn).and_then(|index| usize::try_from(index).ok()) {
                computed.set(index, content);
            }
        }
        if self.catalogue().same_link(link)?.is_none() {
            return Ok(());
        }
        let differ: BTreeSet<Gfn> = computed
            .diff(&stored)
            .take(LISTED_MAX)
            .filter_map(|(index, ..)| layout.gfn(index as u64))
            .collect();
        if differ.is_empty() {
            return Ok(());
        }
        let damage = Damage {
            gfns: differ.into_iter().collect(),
            ..Damage::catalogue("the full page map is not what the changes lead to")
        };
        self.report(report, link, damage)
    }

    fn verify_state(
        &self,
        report: &mut VerifyReport,
        link: &Link,
        name: &str,
        contents: &mut Contents,
    ) -> Result<()> {
        let state = match damage_of(self.stored_state(link.checkpoint))? {
            Ok(state) => state,
            Err(damage) => return self.report(report, link, damage),
        };
        for section in &state.sections {
            let Some(pieces) = pieces(section) else {
                let what = format!("the list of contents of section {} cannot be read", section.format);
                self.report(report, link, Damage::catalogue(what))?;
                continue;
            };
            for id in pieces.into_iter().filter_map(ContentRef::stored) {
                if let Some(damage) = contents.damage(id) {
                    note(&mut damage.sections, &format!("{name}/{}", section.format));
                }
            }
        }
        Ok(())
    }

    /// Adds damage of one checkpoint.
    fn report(&self, report: &mut VerifyReport, link: &Link, mut damage: Damage) -> Result<()> {
        // A checkpoint that was pruned meanwhile, or has another parent now, is not damaged.
        if self.catalogue().same_link(link)?.is_none() {
            return Ok(());
        }
        note(&mut damage.checkpoints, &self.catalogue().checkpoint(link.checkpoint)?.name);
        report.damaged.push(damage);
        Ok(())
    }
}

fn note(list: &mut Vec<String>, name: &str) {
    if list.last().is_none_or(|last| last != name) {
        list.push(name.to_owned());
    }
}

/// Separates damage, which is a result here, from errors.
fn damage_of<T>(result: Result<T>) -> Result<Result<T, Damage>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Damaged(damage)) => Ok(Err(*damage)),
        Err(other) => Err(other),
    }
}
