use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use retrovisor_guest::{Gfn, Gpa, MemoryError, MemoryLayout, MemoryView, Page};

use crate::Error;

/// A raw memory image in a file. Offset N of the file is guest-physical address N, unless a layout says otherwise.
#[derive(Debug)]
pub struct RawDump {
    file: File,
    path: PathBuf,
    layout: MemoryLayout,
}

impl RawDump {
    /// Opens an image whose memory is flat from address 0 (no hole below 4 GiB).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let dump = |source| Error::Dump { path: path.to_owned(), source };
        let file = File::open(path).map_err(dump)?;
        let metadata = file.metadata().map_err(dump)?;
        if !metadata.is_file() {
            return Err(dump(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a file")));
        }
        let length = metadata.len();
        let layout =
            MemoryLayout::flat(length).map_err(|source| Error::DumpSize { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned(), layout })
    }

    /// Opens an image that holds the slots of a layout one after the other, without the holes between them.
    pub fn open_with_layout(path: &Path, layout: MemoryLayout) -> Result<Self, Error> {
        let mut dump = Self::open(path)?;
        if dump.layout.bytes() != layout.bytes() {
            let message = format!("it has {} bytes, the layout {}", dump.layout.bytes(), layout.bytes());
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, message);
            return Err(Error::Dump { path: path.to_owned(), source });
        }
        dump.layout = layout;
        Ok(dump)
    }
}

impl MemoryView for RawDump {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        self.read(gfn.gpa(), into)
    }

    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < into.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemoryError::NotMemory { gpa })?;
            let slot = self.layout.slots().iter().find(|slot| (slot.gpa..slot.end()).contains(&at));
            let slot = slot.ok_or(MemoryError::NotMemory { gpa: at })?;
            let index = self.layout.index(at.gfn()).ok_or(MemoryError::NotMemory { gpa: at })?;
            // The bytes of one slot are contiguous in the file.
            let rest = usize::try_from(slot.end().0 - at.0).unwrap_or(usize::MAX).min(into.len() - done);
            let offset = Gfn(index).gpa().0 + at.offset_in_page() as u64;
            self.file.read_exact_at(&mut into[done..done + rest], offset).map_err(|error| {
                if error.kind() == std::io::ErrorKind::UnexpectedEof {
                    let path = self.path.display();
                    return MemoryError::Damaged(format!(
                        "the dump {path} was cut short after frame {}",
                        at.gfn()
                    ));
                }
                MemoryError::Host(error)
            })?;
            done += rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use retrovisor_guest::MemorySlot;

    use super::*;

    #[test]
    fn a_dump_reads_flat_or_with_holes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[[1; 4096], [2; 4096]].concat()).unwrap();
        let mut page = [0; 4096];
        let flat = RawDump::open(file.path()).unwrap();
        flat.read_page(Gfn(1), &mut page).unwrap();
        assert_eq!(page[0], 2);
        assert!(matches!(flat.read_page(Gfn(2), &mut page), Err(MemoryError::NotMemory { .. })));
        let slot = |gpa| MemorySlot { gpa: Gpa(gpa), length_bytes: 4096 };
        let layout = MemoryLayout::new(vec![slot(0), slot(1 << 32)]).unwrap();
        let holed = RawDump::open_with_layout(file.path(), layout).unwrap();
        holed.read_page(Gpa(1 << 32).gfn(), &mut page).unwrap();
        assert_eq!(page[0], 2);
        let mut both = [0; 6000];
        flat.read(Gpa(1000), &mut both).unwrap();
        assert_eq!((both[3095], both[3096]), (1, 2));
        assert!(matches!(holed.read(Gpa(1000), &mut both), Err(MemoryError::NotMemory { .. })));
        file.as_file().set_len(4096).unwrap();
        assert!(matches!(holed.read_page(Gpa(1 << 32).gfn(), &mut page), Err(MemoryError::Damaged(_))));
    }

    #[test]
    fn files_that_are_no_dumps_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(RawDump::open(file.path()), Err(Error::DumpSize { .. })));
        assert!(matches!(RawDump::open(Path::new("/nonexistent/dump")), Err(Error::Dump { .. })));
        assert!(matches!(RawDump::open(Path::new("/proc")), Err(Error::Dump { .. })));
    }
}
