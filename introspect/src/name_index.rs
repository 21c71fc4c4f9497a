use crate::{hash, section::Section};

/// A hash index from names to numbers. The buckets are stored one after the other, so many equal names need no more
/// space than as many different ones.
#[derive(Clone)]
pub(crate) struct NameIndex {
    /// Start of each bucket in `values`, and the end of the last: 32-bit words.
    starts: Section,
    /// The number in the lower bits, some bits of the name's hash above it.
    values: Section,
}

const NUMBER_BITS: u32 = 23;

impl NameIndex {
    /// Numbers are below this.
    pub(crate) const NUMBERS: u32 = 1 << NUMBER_BITS;

    /// Builds the index from hashes of names and their numbers; equal names keep their order.
    pub(crate) fn new(all: &[(u64, u32)]) -> Self {
        let buckets = all.len().next_power_of_two();
        let mut ends = vec![0_u32; buckets + 1];
        for (hash, _) in all {
            ends[bucket(*hash, buckets) + 1] += 1;
        }
        for at in 1..ends.len() {
            ends[at] += ends[at - 1];
        }
        let starts = ends.iter().copied().collect();
        let mut values = vec![0_u32; all.len()];
        for (hash, number) in all {
            // From here on, `ends` has the position of each bucket's next value.
            let place = &mut ends[bucket(*hash, buckets)];
            values[*place as usize] = tag(*hash) | number & (Self::NUMBERS - 1);
            *place += 1;
        }
        Self { starts, values: values.into_iter().collect() }
    }

    /// Restores an index from its tables; `None` when they cannot be valid.
    pub(crate) fn from_sections(starts: Section, values: Section) -> Option<Self> {
        let buckets = (starts.len() / 4).checked_sub(1)?;
        (buckets.is_power_of_two() && starts.len().is_multiple_of(4) && values.len().is_multiple_of(4))
            .then_some(Self { starts, values })
    }

    pub(crate) fn sections(&self) -> [&Section; 2] {
        [&self.starts, &self.values]
    }

    /// The numbers that a name may have. Few wrong ones are among them.
    pub(crate) fn candidates(&self, name: &[u8]) -> impl Iterator<Item = u32> {
        let hash = hash::of_name(name);
        let at = bucket(hash, self.starts.len() / 4 - 1) * 4;
        let range = self.starts.word(at).zip(self.starts.word(at + 4));
        let places = range.map_or(0..0, |(first, last)| first as usize..last as usize);
        let values = places.map_while(|place| self.values.word(place * 4));
        values
            .filter(move |value| value & !(Self::NUMBERS - 1) == tag(hash))
            .map(|value| value & (Self::NUMBERS - 1))
    }
}

fn bucket(hash: u64, buckets: usize) -> usize {
    usize::try_from(hash & (buckets as u64 - 1)).unwrap_or(0)
}

fn tag(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or(0) & !(NameIndex::NUMBERS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_all_their_numbers_in_order() {
        let names = ["a", "b", "a", "c", "a"];
        let all: Vec<_> =
            (0..).zip(names).map(|(number, name)| (hash::of_name(name.as_bytes()), number)).collect();
        let index = NameIndex::new(&all);
        assert_eq!(index.candidates(b"a").collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(index.candidates(b"c").collect::<Vec<_>>(), [3]);
        assert_eq!(index.candidates(b"d").count(), 0);
        assert_eq!(NameIndex::new(&[]).candidates(b"a").count(), 0);
    }
}
