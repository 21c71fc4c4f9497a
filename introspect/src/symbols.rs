use crate::{hash, image::ImageRange};

/// The kernel's symbol table.
pub(crate) struct Symbols {
    /// Ascending by address.
    entries: Vec<Entry>,
    /// All names, one after the other.
    names: Vec<u8>,
    /// Open addressing: hash of the name → index in `entries` + 1; 0 is empty.
    by_name: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    name_at: u32,
    name_length: u16,
    kind: u8,
}

/// A symbol and how far into it an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'s> {
    pub(crate) name: &'s str,
    pub(crate) offset: u64,
    /// To the next symbol at another address.
    pub(crate) size: u64,
}

impl Symbols {
    /// More than any kernel has.
    pub(crate) const COUNT_MAX: u32 = 2_000_000;

    /// Takes (address, type letter, name) triples in any order.
    pub(crate) fn new<'n>(all: impl Iterator<Item = (u64, u8, &'n [u8])>) -> Self {
        let (mut entries, mut names) = (Vec::new(), Vec::new());
        for (address, kind, name) in all.take(Self::COUNT_MAX as usize) {
            // Names of a real kernel are ASCII; anything else could not be asked for.
            if !name.is_ascii() {
                continue;
            }
            let (Ok(name_at), Ok(name_length)) = (u32::try_from(names.len()), u16::try_from(name.len()))
            else {
                continue;
            };
            names.extend_from_slice(name);
            entries.push(Entry { address, name_at, name_length, kind });
        }
        if !entries.is_sorted_by_key(|entry| entry.address) {
            entries.sort_by_key(|entry| entry.address);
        }
        let mut symbols = Self { entries, names, by_name: Vec::new() };
        symbols.index_names();
        symbols
    }

    fn index_names(&mut self) {
        let slots = (self.entries.len() * 2).next_power_of_two();
        let mut by_name = vec![0_u32; slots];
        for (at, entry) in (1_u32..).zip(&self.entries) {
            let mut slot = slot_of(self.name(entry).as_bytes(), slots);
            while by_name[slot] != 0 {
                slot = (slot + 1) & (slots - 1);
            }
            by_name[slot] = at;
        }
        self.by_name = by_name;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The address of a name; a global symbol wins over a local one of the same name, then the lowest address.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        let slots = self.by_name.len();
        let mut best: Option<&Entry> = None;
        let mut slot = slot_of(name.as_bytes(), slots);
        // The table is at most half full, so an empty slot ends the search.
        while let Some(entry) = self.by_name[slot].checked_sub(1).and_then(|at| self.entries.get(at as usize))
        {
            let better = best.is_none_or(|best| {
                (!entry.kind.is_ascii_uppercase(), entry.address)
                    < (!best.kind.is_ascii_uppercase(), best.address)
            });
            if better && self.name(entry) == name {
                best = Some(entry);
            }
            slot = (slot + 1) & (slots - 1);
        }
        best.map(|entry| entry.address)
    }

    /// The symbol an address lies in. Of several names at one address a system call's own is preferred, then a
    /// global one, then the first.
    pub(crate) fn place(&self, address: u64) -> Option<Place<'_>> {
        let end = self.entries.partition_point(|entry| entry.address <= address);
        let start = self.entries.get(end.checked_sub(1)?)?.address;
        let aliases = self.aliases(start);
        let rank = |entry: &&Entry| {
            let name = self.name(entry);
            (!name.starts_with("__x64_sys_"), name.starts_with("__pfx_"), !entry.kind.is_ascii_uppercase())
        };
        let entry = aliases.iter().min_by_key(rank)?;
        let next = self.entries.get(end).map_or(u64::MAX, |next| next.address);
        Some(Place { name: self.name(entry), offset: address - start, size: next - start })
    }

    /// All names at exactly this address.
    pub(crate) fn names_at(&self, address: u64) -> impl Iterator<Item = &str> {
        self.aliases(address).iter().map(|entry| self.name(entry))
    }

    /// The symbols whose address lies in a range: address and name, ascending.
    pub(crate) fn within(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, &str)> {
        let first = self.entries.partition_point(|entry| entry.address < range.start);
        let last = self.entries.partition_point(|entry| entry.address < range.end);
        self.entries
            .get(first..last)
            .unwrap_or_default()
            .iter()
            .map(|entry| (entry.address, self.name(entry)))
    }

    /// How many symbols lie in the image, in percent.
    pub(crate) fn percent_within(&self, image: &ImageRange) -> usize {
        let within = self.entries.iter().filter(|entry| image.contains(entry.address)).count();
        within * 100 / self.entries.len().max(1)
    }

    fn aliases(&self, address: u64) -> &[Entry] {
        let first = self.entries.partition_point(|entry| entry.address < address);
        let count = self.entries[first..].iter().take_while(|entry| entry.address == address).count();
        &self.entries[first..first + count]
    }

    fn name(&self, entry: &Entry) -> &str {
        let at = entry.name_at as usize;
        let bytes = self.names.get(at..at + usize::from(entry.name_length)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

fn slot_of(name: &[u8], slots: usize) -> usize {
    usize::try_from(hash::of_name(name) & (slots as u64 - 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let all: [(u64, u8, &[u8]); 6] = [
            (30, b't', b"__do_sys_getppid"),
            (30, b'T', b"__x64_sys_getppid"),
            (10, b'T', b"_text"),
            (20, b't', b"twice"),
            (40, b'D', b"twice"),
            (50, b't', b"\xff"),
        ];
        Symbols::new(all.into_iter())
    }

    #[test]
    fn names_lead_to_addresses_and_back() {
        let symbols = symbols();
        assert_eq!(symbols.len(), 5);
        assert_eq!(symbols.address("_text"), Some(10));
        assert_eq!(symbols.address("twice"), Some(40), "the global one");
        assert_eq!(symbols.address("nothing"), None);
        assert_eq!(symbols.place(9), None);
        assert_eq!(symbols.place(33), Some(Place { name: "__x64_sys_getppid", offset: 3, size: 10 }));
        assert_eq!(symbols.names_at(30).count(), 2);
        assert_eq!(symbols.within(10..30).map(|(at, _)| at).collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn no_symbols_is_no_panic() {
        let symbols = Symbols::new(std::iter::empty());
        assert_eq!((symbols.address("x"), symbols.place(5)), (None, None));
    }
}
