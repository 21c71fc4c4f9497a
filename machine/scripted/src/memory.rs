use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use retrovisor_guest::{
    Gfn, Gpa, MachineError, MemoryError, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageSet,
};

/// Guest memory, and which frames the guest wrote.
pub(crate) struct Memory {
    layout: MemoryLayout,
    inner: RwLock<Inner>,
}

struct Inner {
    /// All frames by index.
    bytes: Vec<u8>,
    /// Written by the guest since dirty frames were taken last.
    dirty: PageSet,
}

impl Memory {
    /// Zeros, all of which counts as written.
    pub(crate) fn new(layout: MemoryLayout) -> Result<Self, MachineError> {
        let length = usize::try_from(layout.bytes()).map_err(|_| MachineError::Config {
            what: format!("{} bytes of memory do not fit this host's address space", layout.bytes()),
            help: "Ask for less memory".into(),
        })?;
        let inner = RwLock::new(Inner { bytes: vec![0; length], dirty: PageSet::full(&layout) });
        Ok(Self { layout, inner })
    }

    /// Writes as the guest does, across page borders: the frames become dirty if `is_reported`. Bytes before an address
    /// that is not memory are written.
    pub(crate) fn guest_writes(&self, gpa: Gpa, bytes: &[u8], is_reported: bool) -> Result<(), MemoryError> {
        let mut inner = self.write();
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemoryError::NotMemory { gpa })?;
            let offset = at.offset_in_page();
            let length = (PAGE_SIZE - offset).min(bytes.len() - done);
            let place = self.place(at.gfn())? + offset;
            inner.bytes[place..place + length].copy_from_slice(&bytes[done..done + length]);
            if is_reported {
                inner.dirty.insert(at.gfn());
            }
            done += length;
        }
        Ok(())
    }

    /// Writes as the driver does: the frame does not become dirty.
    pub(crate) fn write_page(&self, gfn: Gfn, page: &Page) -> Result<(), MemoryError> {
        let place = self.place(gfn)?;
        self.write().bytes[place..place + PAGE_SIZE].copy_from_slice(page);
        Ok(())
    }

    /// The dirty frames, which are clean from then on.
    pub(crate) fn take_dirty(&self, into: &mut PageSet) {
        let mut inner = self.write();
        into.union(&inner.dirty);
        inner.dirty.clear();
    }

    /// Where a frame begins.
    fn place(&self, gfn: Gfn) -> Result<usize, MemoryError> {
        let index = self.layout.index(gfn).and_then(|index| usize::try_from(index).ok());
        index.map(|index| index * PAGE_SIZE).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryView for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let place = self.place(gfn)?;
        into.copy_from_slice(&self.read().bytes[place..place + PAGE_SIZE]);
        Ok(())
    }
}
