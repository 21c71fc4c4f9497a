use std::collections::HashSet;

use retrovisor_guest::{DiskState, Machine, MachineState};

use super::engine::Recorder;
use super::kept_disks::KeptDisks;
use crate::disk::{DiskDraft, since};
use crate::error::{Error, Result};

impl Recorder {
    /// Begins to read what changed on the disks until a state that was captured just now. The guest runs on meanwhile.
    pub(super) fn disk_drafts(
        &mut self,
        machine: &mut dyn Machine,
        state: &MachineState,
    ) -> Result<Vec<DiskDraft>> {
        if machine.disks().is_empty() {
            return Ok(Vec::new());
        }
        if !self.disks.known {
            self.look_at_disks(machine)?;
        }
        let seen = std::mem::take(&mut self.disks.seen);
        let drafts = DiskDraft::of(machine, state, |shape| seen.get(&shape.name).cloned());
        let drafts = match drafts {
            Err(error) if !seen.is_empty() => {
                // Somebody let go of what the changes were counted from: all that was ever written is looked at.
                tracing::warn!(%error, "the changes of disks are counted anew");
                DiskDraft::of(machine, state, |_| None)?
            }
            drafts => drafts?,
        };
        let taken: Vec<_> = drafts.iter().map(|draft| draft.at.clone()).collect();
        self.disks.kept.retain(|states| *states != taken);
        self.disks.seen = taken.iter().map(|state| (state.disk.clone(), state.clone())).collect();
        self.disks.kept.push_back(taken);
        Ok(drafts)
    }

    fn look_at_disks(&mut self, machine: &mut dyn Machine) -> Result<()> {
        let kept = machine.retained_disks()?;
        let stands = self.pipeline.stand().disks;
        let seen = machine.disks().iter().filter_map(|shape| since(&stands, shape));
        let seen = seen.filter(|state| kept.contains(state)).map(|state| (state.disk.clone(), state));
        let mut stored = HashSet::new();
        for states in self.store.catalogue().stored_disk_states(self.machine)? {
            // What cannot be read is not known to be stored, and is not let go.
            let states: Vec<DiskState> = serde_json::from_str(&states).unwrap_or_default();
            stored.extend(states.into_iter().map(|state| state.reference));
        }
        let mut groups: Vec<Vec<DiskState>> = Vec::new();
        for state in kept.iter().filter(|state| stored.contains(&state.reference)) {
            match groups.iter_mut().find(|group| group[0].reference == state.reference) {
                Some(group) => group.push(state.clone()),
                None => groups.push(vec![state.clone()]),
            }
        }
        self.disks = KeptDisks { seen: seen.collect(), known: true, kept: groups.into() };
        Ok(())
    }

    /// Lets go of the oldest disk contents that the driver keeps, while the guest runs: the store has them.
    pub(super) fn release_old_disks(&mut self, machine: &mut dyn Machine) {
        if !self.disks.known
            && !machine.disks().is_empty()
            && let Err(error) = self.look_at_disks(machine)
        {
            tracing::warn!(%error, "which disk contents are kept could not be found out");
            return;
        }
        let keep = self.settings.kept_disk_states_max.max(1).saturating_add(self.pipeline.waiting());
        let mut left = self.disks.kept.len();
        while left > keep {
            left -= 1;
            let Some(old) = self.disks.kept.pop_front() else { break };
            if old.iter().any(|state| self.disks.seen.get(&state.disk) == Some(state)) {
                self.disks.kept.push_back(old);
                continue;
            }
            let state = MachineState { disks: old.clone(), ..MachineState::default() };
            if let Err(error) = machine.release_state(&state).map_err(Error::from) {
                tracing::warn!(%error, "disk contents that are in the store could not be released in the image");
                self.disks.kept.push_front(old);
                break;
            }
        }
    }
}
