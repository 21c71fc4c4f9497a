use std::collections::HashSet;

use retrovisor_guest::{DiskState, Machine, MachineState};

use super::engine::Recorder;
use super::retained_disks::RetainedDisks;
use crate::disk::{CapturedDisk, since};
use crate::error::{Error, Result};

impl Recorder {
    /// Begins to read what changed on the disks until a state that was captured just now. The guest runs meanwhile.
    pub(super) fn capture_disks(
        &mut self,
        machine: &mut dyn Machine,
        state: &MachineState,
    ) -> Result<Vec<CapturedDisk>> {
        if machine.disks().is_empty() {
            return Ok(Vec::new());
        }
        if !self.disks.known {
            self.read_retained_disks(machine)?;
        }
        let mut seen = std::mem::take(&mut self.disks.seen);
        if self.sampler.state().needs_full_disks() {
            // Some changes were not reported: all written blocks are read.
            seen.clear();
        }
        let disks = CapturedDisk::of(machine, state, |shape| seen.get(&shape.name).cloned());
        let disks = match disks {
            Err(error) if !seen.is_empty() => {
                // The state that the changes were relative to was released: all written blocks are read.
                tracing::warn!(%error, "all written blocks of the disks are read");
                CapturedDisk::of(machine, state, |_| None)?
            }
            disks => disks?,
        };
        let states: Vec<_> = disks.iter().map(|disk| disk.at.clone()).collect();
        self.disks.kept.retain(|other| *other != states);
        self.disks.seen = states.iter().map(|state| (state.disk.clone(), state.clone())).collect();
        self.disks.kept.push_back(states);
        Ok(disks)
    }

    fn read_retained_disks(&mut self, machine: &mut dyn Machine) -> Result<()> {
        let kept = machine.retained_disks()?;
        let baselines = self.pipeline.baseline().disks;
        let seen = machine.disks().iter().filter_map(|shape| since(&baselines, shape));
        let seen = seen.filter(|state| kept.contains(state)).map(|state| (state.disk.clone(), state));
        let mut stored = HashSet::new();
        for states in self.store.catalogue().stored_disk_states(self.machine)? {
            // What cannot be read is not known to be stored, and is not released.
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
        self.disks = RetainedDisks { seen: seen.collect(), known: true, kept: groups.into() };
        Ok(())
    }

    /// Releases the oldest disk contents that the driver retains, while the guest runs: the store has them.
    pub(super) fn release_old_disks(&mut self, machine: &mut dyn Machine) {
        if !self.disks.known
            && !machine.disks().is_empty()
            && let Err(error) = self.read_retained_disks(machine)
        {
            tracing::warn!(%error, "which disk contents are retained could not be found out");
            return;
        }
        let keep = self.settings.retained_disk_states_max.max(1).saturating_add(self.pipeline.waiting());
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
