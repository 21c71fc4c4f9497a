use retrovisor_guest::{ClockPolicy, Machine, MachineIdentity, PageSet};

use crate::{Error, Patch};

/// A planned fault: the bytes to write, and their effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The bytes to write.
    pub patches: Vec<Patch>,
    /// The effect, as a sentence.
    pub description: String,
}

impl Plan {
    /// The frames that applying or undoing the plan writes.
    #[must_use]
    pub fn frames(&self, machine: &MachineIdentity) -> PageSet {
        let mut frames = PageSet::empty(&machine.layout);
        for gfn in self.patches.iter().flat_map(Patch::frames) {
            frames.insert(gfn);
        }
        frames
    }

    /// The plan that restores the bytes before. It is refused if the bytes have changed since.
    #[must_use]
    pub fn undo(&self) -> Self {
        let patches = self.patches.iter().rev().map(Patch::reversed).collect();
        Self { patches, description: format!("Undone: {}", self.description) }
    }

    /// Writes the patches in one pause. Leaves the machine paused.
    ///
    /// `note` is called with the frames before the first byte is written, so that they are in the next checkpoint
    /// whatever happens afterwards. If the memory differs from the plan's, nothing is written and `note` is not called.
    /// After a later error the old bytes and the state are restored; [`Error::NotReverted`] says that the machine did
    /// not accept the state.
    ///
    /// The state is captured before and applied afterwards, so that a translator drops its translations of old code.
    pub fn apply(&self, machine: &mut dyn Machine, note: &mut dyn FnMut(&PageSet)) -> Result<(), Error> {
        machine.pause()?;
        for patch in &self.patches {
            patch.check(machine.memory())?;
        }
        machine.check_devices()?;
        let state = machine.capture_state()?;
        note(&self.frames(machine.identity()));
        let applied = self
            .patches
            .iter()
            .try_for_each(|patch| patch.write(machine))
            .and_then(|()| Ok(machine.apply_state(&state, ClockPolicy::StandStill)?));
        let mut reverted = Ok(());
        if applied.is_err() {
            for patch in self.undo().patches {
                // The first error is the one to report; the frames are noted already.
                let _ = patch.write(machine);
            }
            // Part of the state may have been applied.
            reverted = machine.apply_state(&state, ClockPolicy::StandStill);
        }
        let released = machine.release_state(&state);
        reverted.map_err(Error::NotReverted)?;
        applied?;
        Ok(released?)
    }
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::{Gfn, Gpa, MemoryIo as _, MemoryLayout};
    use retrovisor_scripted::{Action, MemoryMachine, Method};

    use super::*;

    fn machine() -> MemoryMachine {
        let mut machine = MemoryMachine::new("m", MemoryLayout::flat(4 * 4096).unwrap()).unwrap();
        machine.poke(Gpa(4094), b"abcd").unwrap();
        machine
    }

    fn bytes(machine: &MemoryMachine) -> [u8; 4] {
        let mut bytes = [0; 4];
        machine.memory().read(Gpa(4094), &mut bytes).unwrap();
        bytes
    }

    fn plan(patches: &[(u64, &[u8], &[u8])]) -> Plan {
        let patch = |(gpa, before, after): &(u64, &[u8], &[u8])| Patch {
            gpa: Gpa(*gpa),
            before: before.to_vec(),
            after: after.to_vec(),
        };
        Plan { patches: patches.iter().map(patch).collect(), description: "Changed.".to_owned() }
    }

    #[test]
    fn a_plan_crosses_pages_and_is_undone() {
        let mut machine = machine();
        let plan = plan(&[(4094, b"abcd", b"wxyz")]);
        let mut noted = Vec::new();
        plan.apply(&mut machine, &mut |frames| noted.push(frames.clone())).unwrap();
        assert_eq!(&bytes(&machine), b"wxyz");
        assert_eq!(noted.len(), 1);
        assert!(noted[0].len() == 2 && noted[0].contains(Gfn(0)) && noted[0].contains(Gfn(1)));
        plan.undo().apply(&mut machine, &mut |_| {}).unwrap();
        assert_eq!(&bytes(&machine), b"abcd");
        assert!(matches!(plan.undo().apply(&mut machine, &mut |_| {}), Err(Error::Changed(_))));
    }

    #[test]
    fn a_plan_that_is_out_of_date_writes_and_notes_nothing() {
        let mut machine = machine();
        let stale = plan(&[(4094, b"abcd", b"wxyz"), (0, b"!", b"?")]);
        let mut noted = 0;
        assert!(matches!(stale.apply(&mut machine, &mut |_| noted += 1), Err(Error::Changed(_))));
        assert_eq!((bytes(&machine), noted), (*b"abcd", 0));
    }

    #[test]
    fn frames_are_noted_before_a_write_that_fails() {
        let mut machine = machine();
        let plan = plan(&[(4094, b"abcd", b"wxyz")]);
        machine.script().on(Method::WritePage, 2, Action::Fail);
        let mut noted = Vec::new();
        assert!(plan.apply(&mut machine, &mut |frames| noted.push(frames.clone())).is_err());
        assert!(noted[0].contains(Gfn(0)) && noted[0].contains(Gfn(1)));
        assert_eq!(&bytes(&machine), b"abcd", "the frame that was written is put back");
    }
}
