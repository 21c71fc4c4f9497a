use retrovisor_guest::{ClockPolicy, Gpa, Machine, PAGE_SIZE, PageContent, PageSet};

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

/// Writes the patches in one pause and returns the frames written, for the caller's dirty set.
///
/// The state is captured before and applied afterwards, so that a translator forgets code that it translated before.
/// Leaves the machine paused; on an error memory is as it was, as far as the machine still answers.
pub fn apply(machine: &mut dyn Machine, patches: &[Patch]) -> Result<PageSet, Error> {
    machine.pause()?;
    for patch in patches {
        let mut found = vec![0; patch.before.len()];
        machine.memory().read(patch.gpa, &mut found)?;
        if found != patch.before {
            return Err(Error::Changed(patch.gpa));
        }
    }
    let mut written = PageSet::empty(&machine.identity().layout);
    let state = machine.capture_state()?;
    for patch in patches {
        write(machine, patch.gpa, &patch.after, &mut written)?;
    }
    let applied = machine.apply_state(&state, ClockPolicy::StandStill);
    if applied.is_err() {
        for patch in patches {
            write(machine, patch.gpa, &patch.before, &mut written)?;
        }
    }
    machine.release_state(&state)?;
    applied?;
    Ok(written)
}

fn write(machine: &mut dyn Machine, gpa: Gpa, bytes: &[u8], written: &mut PageSet) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let at = Gpa(gpa.0 + done as u64);
        let offset = at.offset_in_page();
        let length = (PAGE_SIZE - offset).min(bytes.len() - done);
        let mut page = [0; PAGE_SIZE];
        machine.memory().read_page(at.gfn(), &mut page)?;
        page[offset..offset + length].copy_from_slice(&bytes[done..done + length]);
        machine.write_page(at.gfn(), PageContent::Data(&page))?;
        written.insert(at.gfn());
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
        let written = apply(&mut machine, &[good]).unwrap();
        assert_eq!(written.len(), 2);
        machine.memory().read(Gpa(4094), &mut bytes).unwrap();
        assert_eq!(&bytes, b"wxyz");
    }
}
