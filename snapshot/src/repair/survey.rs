use super::lists::Lists;
use super::lost::lost;
use super::plan::RepairPlan;
use crate::error::Result;
use crate::store::{Store, VerifyProgress};

impl Store {
    /// Verifies the store, and returns what a repair would do about the damage. Works on a store that is open for
    /// reading.
    pub fn plan_repair(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<RepairPlan> {
        let report = self.verify(progress)?;
        let mut plan = RepairPlan::default();
        let saved = self.plan_contents(&report.damaged, &mut plan)?;
        let lists = Lists::plan(self, &mut plan)?;
        self.plan_packs(&mut plan)?;
        self.plan_index(&mut plan)?;
        let mut unsaved: Vec<_> = report
            .damaged
            .into_iter()
            .filter(|damage| damage.content.is_none_or(|content| !saved.contains(&content)))
            .filter(|damage| !lists.is_saved(damage))
            .collect();
        unsaved.retain(|damage| {
            let speaks = !damage.checkpoints.is_empty() || !damage.sections.is_empty();
            // Damage of a pack that touches no checkpoint is reported by its contents.
            let is_structure = !speaks && damage.pack.is_none() && damage.content.is_none();
            if is_structure {
                plan.beyond_repair.push(damage.to_string());
            }
            speaks
        });
        plan.lost = lost(self, &unsaved)?;
        Ok(plan)
    }
}
