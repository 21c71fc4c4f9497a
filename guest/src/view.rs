use crate::{Gfn, Gpa, MemoryError, MemoryLayout, PAGE_SIZE, Page, is_zero};

/// Identifies a frame's contents within one source of views: equal tokens mean equal bytes, different ones mean
/// nothing. A reader can keep results that it derived from unchanged frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageToken(pub u64);

/// A guest's memory at one instant, for reading: a stored checkpoint, an imported dump, or a paused machine.
///
/// The guest wrote all of it: it is untrusted until checked.
pub trait MemoryView {
    /// Which frames are RAM.
    fn layout(&self) -> &MemoryLayout;

    /// Reads one frame. A zero or removed frame reads as zeros.
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError>;

    /// Reads one frame and returns whether all of it is zero. For a copy that is not used soon: a source may use
    /// non-temporal stores, which do not displace the contents of the processor's caches.
    fn read_nontemporal(&self, gfn: Gfn, into: &mut Page) -> Result<bool, MemoryError> {
        self.read_page(gfn, into)?;
        Ok(is_zero(into))
    }

    /// The token of the frame's contents, if this source has tokens.
    fn token(&self, _gfn: Gfn) -> Option<PageToken> {
        None
    }

    /// Whether the frame is known to be zero without reading it. `false` means unknown.
    fn known_zero(&self, _gfn: Gfn) -> bool {
        false
    }

    /// Whether the guest gave the frame back (balloon, hot-unplug). `false` also if the source does not know.
    fn removed(&self, _gfn: Gfn) -> bool {
        false
    }

    /// Reads from `gpa` into `into`, across page boundaries.
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut page = [0; PAGE_SIZE];
        let mut done = 0;
        while done < into.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemoryError::NotMemory { gpa })?;
            let offset = at.offset_in_page();
            if offset == 0
                && let Some(whole) = into[done..].first_chunk_mut()
            {
                self.read_page(at.gfn(), whole)?;
                done += PAGE_SIZE;
                continue;
            }
            let length = (PAGE_SIZE - offset).min(into.len() - done);
            self.read_page(at.gfn(), &mut page)?;
            into[done..done + length].copy_from_slice(&page[offset..offset + length]);
            done += length;
        }
        Ok(())
    }
}

impl<V: MemoryView + ?Sized> MemoryView for &V {
    fn layout(&self) -> &MemoryLayout {
        (**self).layout()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        (**self).read_page(gfn, into)
    }
    fn read_nontemporal(&self, gfn: Gfn, into: &mut Page) -> Result<bool, MemoryError> {
        (**self).read_nontemporal(gfn, into)
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        (**self).token(gfn)
    }
    fn known_zero(&self, gfn: Gfn) -> bool {
        (**self).known_zero(gfn)
    }
    fn removed(&self, gfn: Gfn) -> bool {
        (**self).removed(gfn)
    }
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        (**self).read(gpa, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(MemoryLayout);

    impl MemoryView for Counting {
        fn layout(&self) -> &MemoryLayout {
            &self.0
        }
        fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
            self.0.index(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
            into.fill(u8::try_from(gfn.0).unwrap());
            Ok(())
        }
    }

    #[test]
    fn a_read_crosses_pages_and_stops_at_the_end_of_memory() {
        let view = Counting(MemoryLayout::flat(3 * 4096).unwrap());
        let mut bytes = [9; 6];
        view.read(Gpa(4096 * 2 - 3), &mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 1, 2, 2, 2]);
        assert!(matches!(view.read(Gpa(4096 * 3 - 3), &mut bytes), Err(MemoryError::NotMemory { .. })));
        assert!(view.read(Gpa(u64::MAX), &mut bytes).is_err());
    }
}
