//! The guest's memory, which QEMU and this process share.

use retrovisor_guest::{
    Gfn, MachineError, MemoryError, MemoryLayout, MemoryView, Page, PageContent, PageSet,
};

use super::dirty_finder::Finder;
use crate::ram::Ram;

/// Guest memory, and the finder of written frames.
pub(super) struct GuestRam {
    ram: Ram,
    finder: Finder,
}

impl GuestRam {
    pub(super) fn new(ram: Ram, finder: Finder) -> Self {
        Self { ram, finder }
    }

    pub(super) fn finder(&self) -> &Finder {
        &self.finder
    }

    /// Must be called before the guest is resumed.
    pub(super) fn unsettle(&mut self) {
        self.finder.unsettle();
    }

    /// As [`retrovisor_guest::MemoryIo::take_dirty`].
    pub(super) fn take_dirty(&mut self, is_running: bool, into: &mut PageSet) -> Result<(), MachineError> {
        self.finder.scan(&self.ram, is_running, into)
    }

    /// Writes the content of one frame of the paused guest.
    pub(super) fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MemoryError> {
        let ram = &self.ram;
        self.finder.write(gfn, content, || ram.write_page(gfn, content))
    }
}

impl MemoryView for GuestRam {
    fn layout(&self) -> &MemoryLayout {
        self.ram.layout()
    }

    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        self.finder.note_read(gfn);
        self.ram.read_page(gfn, into)
    }

    fn read_nontemporal(&self, gfn: Gfn, into: &mut Page) -> Result<bool, MemoryError> {
        self.finder.note_read(gfn);
        self.ram.read_nontemporal(gfn, into)
    }

    fn known_zero(&self, gfn: Gfn) -> bool {
        self.finder.note_read(gfn);
        self.ram.known_zero(gfn)
    }
}
