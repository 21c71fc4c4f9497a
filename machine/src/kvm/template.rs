use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use retrovisor_guest::{MachineError, MemoryLayout, MemoryView, PAGE_SIZE, Page, ZERO_PAGE, is_zero};

/// Pages that are read before they are written in one piece.
const RUN_PAGES: usize = 256;

/// The memory of one instant, for any number of machines that start from it: they share it until they write.
///
/// It is in a sealed memfd. A machine maps it privately; a page that its guest writes is copied for it.
#[derive(Clone, Debug)]
pub struct Template {
    layout: MemoryLayout,
    file: Arc<File>,
}

impl Template {
    /// Copies the memory of a checkpoint or of a paused machine. Pages of zeros take no room.
    pub fn of(view: &dyn MemoryView) -> Result<Self, MachineError> {
        let mut writer = TemplateWriter::new(view.layout().clone())?;
        let mut page = ZERO_PAGE;
        for (index, gfn) in (0..).zip(view.layout().gfns()) {
            if view.removed(gfn) || view.known_zero(gfn) {
                continue;
            }
            view.read_page(gfn, &mut page)?;
            writer.put(index, &page)?;
        }
        writer.seal()
    }

    /// The address ranges of the memory.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// The slots, one after another.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

/// A template that is being filled, page by page; other pages stay zero.
pub struct TemplateWriter {
    layout: MemoryLayout,
    file: File,
    /// Pages in a row that wait to be written, and the index of the first.
    run: Vec<u8>,
    first: u64,
}

impl TemplateWriter {
    /// All zeros.
    pub fn new(layout: MemoryLayout) -> Result<Self, MachineError> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"retrovisor-template", flags)
            .map_err(|errno| failed("making a file in memory", errno.into()))?;
        let file = File::from(file);
        file.set_len(layout.bytes()).map_err(|source| failed("making room for a template", source))?;
        Ok(Self { layout, file, run: Vec::with_capacity(RUN_PAGES * PAGE_SIZE), first: 0 })
    }

    /// Sets the content of the frame with that index. Fastest in ascending order.
    pub fn put(&mut self, index: u64, page: &Page) -> Result<(), MachineError> {
        if index >= self.layout.pages() {
            return Err(MachineError::Config {
                what: format!("page {index} is past the end of a memory of {} pages", self.layout.pages()),
                help: "Fill a template for the memory layout that the pages come from".into(),
            });
        }
        if is_zero(page) {
            return Ok(());
        }
        let waiting = self.run.len() / PAGE_SIZE;
        if waiting == RUN_PAGES || index != self.first + waiting as u64 {
            self.flush()?;
            self.first = index;
        }
        self.run.extend_from_slice(page);
        Ok(())
    }

    /// From here on it cannot be changed.
    pub fn seal(mut self) -> Result<Template, MachineError> {
        self.flush()?;
        let seals =
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| failed("sealing a template", errno.into()))?;
        Ok(Template { layout: self.layout, file: Arc::new(self.file) })
    }

    fn flush(&mut self) -> Result<(), MachineError> {
        let written = self.file.write_all_at(&self.run, self.first * PAGE_SIZE as u64);
        self.run.clear();
        written.map_err(|source| failed("filling a template", source))
    }
}

fn failed(doing: &str, source: std::io::Error) -> MachineError {
    MachineError::Io { doing: doing.into(), source }
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::{Gfn, Gpa, MemorySlot, PageContent};

    use super::*;
    use crate::ram::Ram;

    #[test]
    fn branches_share_the_pages_until_they_write() {
        let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
        let layout = MemoryLayout::new(vec![slot(0, 600), slot(4 << 30, 3)]).unwrap();
        let source = Ram::anonymous(layout.clone()).unwrap();
        let high = Gfn((4 << 18) + 2);
        for gfn in (0..400).map(Gfn).chain([Gfn(599), high]) {
            source.write_page(gfn, PageContent::Data(&[gfn.0.to_le_bytes()[0] | 1; PAGE_SIZE])).unwrap();
        }
        let template = Template::of(&source).unwrap();
        let branches = [(); 2].map(|()| Ram::private(layout.clone(), template.file()).unwrap());
        let mut page = ZERO_PAGE;
        let mut expected = ZERO_PAGE;
        for gfn in layout.gfns() {
            source.read_page(gfn, &mut expected).unwrap();
            branches[0].read_page(gfn, &mut page).unwrap();
            assert_eq!(page, expected, "{gfn:?}");
        }
        for gfn in [Gfn(7), Gfn(500), high] {
            branches[0].write_page(gfn, PageContent::Data(&[99; PAGE_SIZE])).unwrap();
            assert!(!branches[0].known_zero(gfn), "a page of its own over a hole of the file");
            source.read_page(gfn, &mut expected).unwrap();
            branches[1].read_page(gfn, &mut page).unwrap();
            assert_eq!(page, expected, "the other one's");
            branches[0].read_page(gfn, &mut page).unwrap();
            assert_eq!(page, [99; PAGE_SIZE]);
        }
        assert!(template.file().write_all_at(b"x", 0).is_err(), "sealed");
        assert!(template.file().set_len(0).is_err(), "sealed");
    }

    #[test]
    fn a_page_past_the_end_is_refused() {
        let mut writer = TemplateWriter::new(MemoryLayout::flat(8192).unwrap()).unwrap();
        assert!(writer.put(2, &[1; PAGE_SIZE]).is_err());
    }
}
