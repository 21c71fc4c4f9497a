use std::collections::HashMap;

/// The place of a block's contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stored {
    /// In the base image.
    #[default]
    Base,
    /// None: zeros.
    Zero,
    /// In a slot of the disk's own file.
    Slot(u32),
}

/// A block that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) old: Stored,
    pub(super) new: Stored,
}

/// The blocks that were written between two states.
pub(super) type Delta = HashMap<u64, Change>;

/// Joins two consecutive deltas. Costs as much as the smaller one. Slots that only the state between them had are
/// freed.
pub(super) fn fold(first: Delta, second: Delta, freed: &mut Vec<u32>) -> Delta {
    let mut free = |stored| {
        if let Stored::Slot(slot) = stored {
            freed.push(slot);
        }
    };
    if first.len() >= second.len() {
        let mut all = first;
        for (block, later) in second {
            all.entry(block)
                .and_modify(|change| {
                    free(change.new);
                    change.new = later.new;
                })
                .or_insert(later);
        }
        return all;
    }
    let mut all = second;
    for (block, earlier) in first {
        all.entry(block)
            .and_modify(|change| {
                free(earlier.new);
                change.old = earlier.old;
            })
            .or_insert(earlier);
    }
    all
}
