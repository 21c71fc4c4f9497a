use crate::{Gfn, MemoryLayout};

/// A set of frames of one layout: a bitmap by index, one bit a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    layout: MemoryLayout,
    words: Vec<u64>,
}

impl PageSet {
    /// No frame.
    #[must_use]
    pub fn empty(layout: &MemoryLayout) -> Self {
        let words = usize::try_from(layout.pages().div_ceil(64)).unwrap_or(usize::MAX);
        Self { layout: layout.clone(), words: vec![0; words] }
    }

    /// Every frame.
    #[must_use]
    pub fn full(layout: &MemoryLayout) -> Self {
        let mut set = Self::empty(layout);
        set.words.fill(u64::MAX);
        let tail = layout.pages() % 64;
        if let (Some(last), true) = (set.words.last_mut(), tail > 0) {
            *last = (1 << tail) - 1;
        }
        set
    }

    /// The layout of the frames.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Adds a frame; a frame that is not RAM is ignored. Returns whether the set changed.
    pub fn insert(&mut self, gfn: Gfn) -> bool {
        self.layout.index(gfn).is_some_and(|index| self.insert_index(index))
    }

    /// Adds a frame by its index; an index past the end is ignored. Returns whether the set changed.
    pub fn insert_index(&mut self, index: u64) -> bool {
        let Some(word) = usize::try_from(index / 64).ok().and_then(|at| self.words.get_mut(at)) else {
            return false;
        };
        let bit = 1 << (index % 64);
        let new = *word & bit == 0 && index < self.layout.pages();
        if new {
            *word |= bit;
        }
        new
    }

    /// Adds frames by a bitmap whose bit 0 is the frame with that index (a hypervisor's dirty log of one slot); bits
    /// past the end are ignored.
    pub fn insert_words(&mut self, first: u64, words: &[u64]) {
        let shift = first % 64;
        let skip = usize::try_from(first / 64).unwrap_or(usize::MAX);
        if shift == 0 {
            for (word, more) in self.words.iter_mut().skip(skip).zip(words) {
                *word |= more;
            }
        } else {
            for (at, word) in (skip..).zip(words) {
                if let Some(low) = self.words.get_mut(at) {
                    *low |= word << shift;
                }
                if let Some(high) = self.words.get_mut(at + 1) {
                    *high |= word >> (64 - shift);
                }
            }
        }
        let tail = self.layout.pages() % 64;
        if let (Some(last), true) = (self.words.last_mut(), tail > 0) {
            *last &= (1 << tail) - 1;
        }
    }

    /// Whether the frame is in the set.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.layout.index(gfn).is_some_and(|index| self.contains_index(index))
    }

    /// Adds every frame of `other`; frames outside this set's layout are ignored.
    pub fn union(&mut self, other: &Self) {
        if self.layout == other.layout {
            for (word, more) in self.words.iter_mut().zip(&other.words) {
                *word |= more;
            }
        } else {
            other.iter().for_each(|gfn| {
                self.insert(gfn);
            });
        }
    }

    /// Adds frames 64 at a time: bit `n` of `bits` is index `64 * at + n`. Bits past the end are ignored.
    pub fn insert_word(&mut self, at: usize, bits: u64) {
        let pages = self.layout.pages();
        if let Some(word) = self.words.get_mut(at) {
            let past = (at as u64 + 1).saturating_mul(64).saturating_sub(pages).min(63);
            *word |= bits & (u64::MAX >> past);
        }
    }

    /// The bitmap: bit `n` of word `at` is index `64 * at + n`.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether the frame of this index is in the set.
    #[must_use]
    pub fn contains_index(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Removes every frame.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Frames in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is no frame in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The indices, ascending.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    at as u64 * 64 + u64::from(bit)
                })
            })
        })
    }

    /// The frames, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.indices().filter_map(|index| self.layout.gfn(index))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{Gpa, MemorySlot};

    fn layout() -> MemoryLayout {
        let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
        MemoryLayout::new(vec![slot(0, 70), slot(0x10_0000, 61)]).unwrap()
    }

    #[test]
    fn full_holds_every_frame_and_no_more() {
        let full = PageSet::full(&layout());
        assert_eq!(full.len(), 131);
        assert!(full.iter().eq(layout().gfns()));
        assert!(!full.contains(Gfn(70)));
    }

    #[test]
    fn words_past_the_end_are_cut() {
        let mut set = PageSet::empty(&layout());
        for at in 0..5 {
            set.insert_word(at, u64::MAX);
        }
        assert_eq!(set, PageSet::full(&layout()));
        assert!(set.contains_index(130) && !set.contains_index(131));
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(a in prop::collection::vec(0_u64..400, 0..99), b in prop::collection::vec(0_u64..400, 0..99)) {
            let layout = layout();
            let ram = |gfns: &[u64]| gfns.iter().map(|g| Gfn(*g)).filter(|g| layout.index(*g).is_some()).collect::<BTreeSet<_>>();
            let set = |gfns: &[u64]| { let mut set = PageSet::empty(&layout); for g in gfns { set.insert(Gfn(*g)); } set };
            let mut both = set(&a);
            both.union(&set(&b));
            let expected: BTreeSet<_> = ram(&a).union(&ram(&b)).copied().collect();
            prop_assert_eq!(both.len(), expected.len() as u64);
            prop_assert!(both.iter().eq(expected.iter().copied()));
        }
    }
}
