use retrovisor_guest::{Gfn, Gpa, Machine, MemoryView, PAGE_SIZE, PageContent};

use crate::Error;

/// Bytes of guest memory that are replaced by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Guest-physical address of the first byte.
    pub gpa: Gpa,
    /// The bytes before; if memory differs from them, the plan is out of date and nothing is written.
    pub before: Vec<u8>,
    /// The bytes afterwards; as many as `before`.
    pub after: Vec<u8>,
}

impl Patch {
    /// The frames of the bytes.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Gfn> {
        let bytes = self.before.len().max(self.after.len()) as u64;
        let last = self.gpa.0.saturating_add(bytes.saturating_sub(1));
        (self.gpa.gfn().0..=Gpa(last).gfn().0).map(Gfn).filter(move |_| bytes > 0)
    }

    /// The patch that restores the bytes before.
    pub(crate) fn reversed(&self) -> Self {
        Self { gpa: self.gpa, before: self.after.clone(), after: self.before.clone() }
    }

    /// Fails if memory differs from the bytes before.
    pub(crate) fn check(&self, memory: &dyn MemoryView) -> Result<(), Error> {
        let mut found = vec![0; self.before.len()];
        memory.read(self.gpa, &mut found)?;
        if found == self.before { Ok(()) } else { Err(Error::Changed(self.gpa)) }
    }

    /// Writes the bytes. Needs the machine paused.
    pub(crate) fn write(&self, machine: &mut dyn Machine) -> Result<(), Error> {
        let mut done = 0;
        while done < self.after.len() {
            let at = Gpa(self.gpa.0 + done as u64);
            let offset = at.offset_in_page();
            let length = (PAGE_SIZE - offset).min(self.after.len() - done);
            let mut page = [0; PAGE_SIZE];
            machine.memory().read_page(at.gfn(), &mut page)?;
            page[offset..offset + length].copy_from_slice(&self.after[done..done + length]);
            machine.write_page(at.gfn(), PageContent::Data(&page))?;
            done += length;
        }
        Ok(())
    }
}
