use crate::{hash, image::KERNEL_MAP, name_index::NameIndex, section::Section};

/// The kernel's symbol table, in the form in which it is also kept in files: 32-bit words, relative to the kernel.
pub(crate) struct Symbols {
    /// The base of the symbols in the kernel's half: [`KERNEL_MAP`], and for another boot that address moved by the
    /// KASLR slide.
    base: u64,
    /// Addresses, ascending. Those with the upper bit set are offsets from the base; the others are absolute (offsets
    /// of per-CPU variables).
    places: Section,
    /// Start of each name, and the end of the last.
    name_starts: Section,
    /// The names one after the other, each preceded by its type letter.
    names: Section,
    by_name: NameIndex,
}

/// Marks an address that is relative to the base.
const OF_KERNEL: u32 = 1 << 31;

struct Entry<'s> {
    address: u64,
    kind: u8,
    name: &'s str,
}

/// A symbol and the offset of an address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'s> {
    pub(crate) name: &'s str,
    pub(crate) offset: u64,
    /// Distance to the next symbol at another address.
    pub(crate) size: u64,
}

impl Symbols {
    /// Bound on the number of symbols: larger than in any real kernel.
    pub(crate) const COUNT_MAX: u32 = 2_000_000;

    /// Builds the table from (address, type letter, name) triples in any order.
    pub(crate) fn new<'n>(all: impl Iterator<Item = (u64, u8, &'n [u8])>) -> Self {
        let all = all.take(Self::COUNT_MAX as usize);
        // Names of a real kernel are ASCII, and no kernel has other addresses.
        let mut entries: Vec<_> = all
            .filter_map(|(address, kind, name)| name.is_ascii().then_some((place_of(address)?, kind, name)))
            .collect();
        if !entries.is_sorted_by_key(|(place, ..)| *place) {
            entries.sort_by_key(|(place, ..)| *place);
        }
        let (mut names, mut starts) = (Vec::with_capacity(entries.len() * 24), vec![0]);
        let mut hashes = Vec::with_capacity(entries.len());
        for (number, (_, kind, name)) in (0..).zip(&entries) {
            names.push(*kind);
            names.extend_from_slice(name);
            starts.push(u32::try_from(names.len()).unwrap_or(u32::MAX));
            hashes.push((hash::of_name(name), number));
        }
        Self {
            base: KERNEL_MAP,
            places: entries.iter().map(|(place, ..)| *place).collect(),
            name_starts: starts.into_iter().collect(),
            names: Section::from(names),
            by_name: NameIndex::new(&hashes),
        }
    }

    /// Restores the table from the result of [`Self::sections`], for a kernel at another address; `None` when it cannot
    /// be valid.
    pub(crate) fn from_sections(base: u64, sections: [Section; 5]) -> Option<Self> {
        let [places, name_starts, names, buckets, values] = sections;
        let fits = places.len().is_multiple_of(4) && name_starts.len() == places.len() + 4;
        let by_name = NameIndex::from_sections(buckets, values)?;
        fits.then_some(Self { base, places, name_starts, names, by_name })
    }

    /// The base, and the tables.
    pub(crate) fn sections(&self) -> (u64, [&Section; 5]) {
        let [buckets, values] = self.by_name.sections();
        (self.base, [&self.places, &self.name_starts, &self.names, buckets, values])
    }

    /// Whether every name is short enough to be read from a library file.
    pub(crate) fn can_be_kept(&self) -> bool {
        let start = |number| self.name_starts.word(number * 4).unwrap_or(0);
        (0..self.len()).all(|number| {
            start(number + 1).saturating_sub(start(number)) as usize <= Section::PIECE_BYTES_MAX
        })
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.places.is_damaged()
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() / 4
    }

    /// The address of a name; a global symbol wins over a local one of the same name, then the lowest address.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        let named = self.by_name.candidates(name.as_bytes());
        let entries =
            named.filter_map(|number| self.entry(number as usize)).filter(|entry| entry.name == name);
        entries
            .min_by_key(|entry| (!entry.kind.is_ascii_uppercase(), entry.address))
            .map(|entry| entry.address)
    }

    /// The symbol that contains an address. Of several names at one address a system call's own is preferred, then a
    /// global one, then the first.
    pub(crate) fn place(&self, address: u64) -> Option<Place<'_>> {
        let end = self.count_below(address.checked_add(1)?);
        let start = self.address_at(end.checked_sub(1)?)?;
        let rank = |entry: &Entry| {
            let prefix = |prefix| entry.name.starts_with(prefix);
            (!prefix("__x64_sys_"), prefix("__pfx_"), !entry.kind.is_ascii_uppercase())
        };
        let entry = self.aliases(start).min_by_key(rank)?;
        let next = self.address_at(end).unwrap_or(u64::MAX);
        Some(Place {
            name: entry.name,
            offset: address.checked_sub(start)?,
            size: next.saturating_sub(start),
        })
    }

    /// All names at exactly this address.
    pub(crate) fn names_at(&self, address: u64) -> impl Iterator<Item = &str> {
        self.aliases(address).map(|entry| entry.name)
    }

    /// The symbols whose address is in a range: address and name, ascending.
    pub(crate) fn within(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, &str)> {
        let numbers = self.count_below(range.start)..self.count_below(range.end);
        numbers.filter_map(|number| self.entry(number)).map(|entry| (entry.address, entry.name))
    }

    fn aliases(&self, address: u64) -> impl Iterator<Item = Entry<'_>> {
        let numbers = self.count_below(address)..self.len();
        let same = numbers.take_while(move |number| self.address_at(*number) == Some(address));
        same.filter_map(|number| self.entry(number))
    }

    /// Number of symbols with a smaller address.
    fn count_below(&self, address: u64) -> usize {
        let (mut first, mut last) = (0, self.len());
        while first < last {
            let middle = first.midpoint(last);
            match self.address_at(middle) {
                Some(found) if found < address => first = middle + 1,
                _ => last = middle,
            }
        }
        first
    }

    fn address_at(&self, number: usize) -> Option<u64> {
        let place = self.places.word(number.checked_mul(4)?)?;
        Some(if place & OF_KERNEL == 0 {
            place.into()
        } else {
            self.base.wrapping_add(u64::from(place & !OF_KERNEL))
        })
    }

    fn entry(&self, number: usize) -> Option<Entry<'_>> {
        let address = self.address_at(number)?;
        let start = self.name_starts.word(number * 4)? as usize;
        let end = self.name_starts.word(number * 4 + 4)? as usize;
        let (kind, name) = self.names.get(start, end.checked_sub(start)?)?.split_first()?;
        Some(Entry { address, kind: *kind, name: std::str::from_utf8(name).ok()? })
    }
}

fn place_of(address: u64) -> Option<u32> {
    let (offset, of) = address.checked_sub(KERNEL_MAP).map_or((address, 0), |offset| (offset, OF_KERNEL));
    u32::try_from(offset).ok().filter(|offset| offset & OF_KERNEL == 0).map(|offset| offset | of)
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
