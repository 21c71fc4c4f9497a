use retrovisor_guest::{ClockPolicy, Gpa, Machine, MemoryLayout, PAGE_SIZE, PageContent, PageSet};

use crate::Error;

/// Bytes to be put in the place of others in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Guest-physical address of the first byte.
    pub gpa: Gpa,
    /// What must be there before; else the plan is out of date and nothing is written.
    pub before: Vec<u8>,
    /// What is there afterwards; as long as `before`.
    pub after: Vec<u8>,
}

/// The frames that these patches write: the caller notes them as dirty before it calls [`apply`], so that they are in the
/// next checkpoint also when that fails half-way.
#[must_use]
pub fn frames(patches: &[Patch], layout: &MemoryLayout) -> PageSet {
    let mut frames = PageSet::empty(layout);
    for patch in patches {
        let end = patch.gpa.0.saturating_add(patch.after.len() as u64);
        for page in patch.gpa.0 / PAGE_SIZE as u64..end.div_ceil(PAGE_SIZE as u64) {
            frames.insert(Gpa(page * PAGE_SIZE as u64).gfn());
        }
    }
    frames
}

/// Writes the patches in one pause; [`frames`] says to which frames.
///
/// The state is captured before and applied afterwards, so that a translator forgets code that it translated before.
/// Leaves the machine paused; on an error memory is as it was, as far as the machine still answers.
pub fn apply(machine: &mut dyn Machine, patches: &[Patch]) -> Result<(), Error> {
    machine.pause()?;
    for patch in patches {
        let mut found = vec![0; patch.before.len()];
        machine.memory().read(patch.gpa, &mut found)?;
        if found != patch.before {
            return Err(Error::Changed(patch.gpa));
        }
    }
    let state = machine.capture_state()?;
    for patch in patches {
        write(machine, patch.gpa, &patch.after)?;
    }
    let applied = machine.apply_state(&state, ClockPolicy::StandStill);
    if applied.is_err() {
        for patch in patches {
            write(machine, patch.gpa, &patch.before)?;
        }
    }
    machine.release_state(&state)?;
    Ok(applied?)
}

fn write(machine: &mut dyn Machine, gpa: Gpa, bytes: &[u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let at = Gpa(gpa.0 + done as u64);
        let offset = at.offset_in_page();
        let length = (PAGE_SIZE - offset).min(bytes.len() - done);
        let mut page = [0; PAGE_SIZE];
        machine.memory().read_page(at.gfn(), &mut page)?;
        page[offset..offset + length].copy_from_slice(&bytes[done..done + length]);
        machine.write_page(at.gfn(), PageContent::Data(&page))?;
        done += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::{MemoryIo as _, MemoryLayout};
    use retrovisor_scripted::MemoryMachine;

    use super::*;

    #[test]
    fn a_patch_crosses_pages_and_an_outdated_one_changes_nothing() {
        let mut machine = MemoryMachine::new("m", MemoryLayout::flat(4 * 4096).unwrap()).unwrap();
        machine.poke(Gpa(4094), b"abcd").unwrap();
        let good = Patch { gpa: Gpa(4094), before: b"abcd".to_vec(), after: b"wxyz".to_vec() };
        let stale = Patch { gpa: Gpa(0), before: b"!".to_vec(), after: b"?".to_vec() };
        assert!(matches!(apply(&mut machine, &[good.clone(), stale]), Err(Error::Changed(_))));
        let mut bytes = [0; 4];
        machine.memory().read(Gpa(4094), &mut bytes).unwrap();
        assert_eq!(&bytes, b"abcd");
        let layout = machine.identity().layout.clone();
        assert_eq!(frames(std::slice::from_ref(&good), &layout).iter().collect::<Vec<_>>(), [Gfn(0), Gfn(1)]);
        apply(&mut machine, &[good]).unwrap();
        machine.memory().read(Gpa(4094), &mut bytes).unwrap();
        assert_eq!(&bytes, b"wxyz");
    }
}
