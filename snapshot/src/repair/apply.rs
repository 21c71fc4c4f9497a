use std::collections::BTreeSet;

use super::contents::content;
use super::lists::{derive_changes, derive_map};
use super::lost::lost;
use super::plan::{RepairAction, RepairPlan, RepairReport};
use crate::catalogue::FrameRow;
use crate::content::ContentId;
use crate::error::{Error, Result};
use crate::store::{Store, VerifyProgress, keyframe};

impl Store {
    /// Carries out a plan, verifies the store again, and marks the checkpoints that are still incomplete: they are
    /// refused as targets from then on. Others stay usable. Marks of checkpoints that are complete again are removed.
    pub fn repair(
        &self,
        plan: &RepairPlan,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<RepairReport> {
        let _alone = self.maintain()?;
        let mut report = RepairReport::default();
        for item in &plan.items {
            match self.apply_action(&item.action) {
                Ok(true) => report.repaired += 1,
                Ok(false) => report.failed.push(item.damage.clone()),
                Err(Error::Damaged(damage)) => report.failed.push(damage.to_string()),
                Err(other) => return Err(other),
            }
        }
        self.forget_all();
        let found = self.verify(progress)?;
        report.lost = lost(self, &found.damaged)?;
        report.remaining = found.damaged.iter().map(ToString::to_string).collect();
        // Damaged contents are not reused from now on: their bytes are stored again, and a later repair links to them.
        let bad: BTreeSet<ContentId> =
            found.damaged.iter().filter_map(|damage| damage.content.map(content)).collect();
        let mut content_writer = self.content_writer()?;
        self.catalogue().set_lost_contents(&bad.iter().copied().collect::<Vec<_>>())?;
        content_writer.set_lost(bad.into_iter().collect());
        drop(content_writer);
        let marks: Vec<_> = report
            .lost
            .iter()
            .flat_map(|lost| lost.what.iter().map(|what| (lost.id, what.as_str())))
            .collect();
        report.recovered = self.catalogue().set_damage_marks(&marks)?;
        Ok(report)
    }

    /// Returns whether it could be done.
    fn apply_action(&self, action: &RepairAction) -> Result<bool> {
        let catalogue = self.catalogue();
        match *action {
            RepairAction::Relink { content: id, pack, offset, stored_bytes, pages, slot } => {
                let frame = self.packs.read_frame(pack, offset, stored_bytes, pages)?;
                let Some(page) = frame.page(slot) else { return Ok(false) };
                let row = FrameRow { id: 0, pack, offset, stored_bytes, pages };
                catalogue.relink(content(id), &self.key.page(page), &row, slot)?;
            }
            RepairAction::Reparent { checkpoint, parent } => catalogue.set_parent(checkpoint, parent)?,
            RepairAction::RebuildChanges { checkpoint } => {
                let (links, link) = (catalogue.links()?, catalogue.link(checkpoint)?);
                let Some(changes) = derive_changes(self, &links, &link)? else { return Ok(false) };
                catalogue.replace_changes(checkpoint, &changes)?;
            }
            RepairAction::RebuildMap { checkpoint } => {
                let Some(map) = derive_map(self, &catalogue.link(checkpoint)?)? else { return Ok(false) };
                catalogue.replace_keyframe(checkpoint, &keyframe(&self.key, &map)?)?;
            }
            RepairAction::RebuildPack { pack, committed_bytes } => {
                // Held, so that nothing is appended to it meanwhile.
                let _writer = self.content_writer()?;
                catalogue.raise_pack(pack, committed_bytes)?;
            }
            RepairAction::RebuildIndex => {
                let _writer = self.content_writer()?;
                catalogue.rebuild_index()?;
            }
        }
        self.forget_all();
        Ok(true)
    }
}
