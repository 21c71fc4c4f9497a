use std::collections::HashMap;

use super::{PageOwner, map::OwnerMap};

/// The amount of memory that one owner has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The kind of owner: [`PageOwner::kind`].
    pub kind: &'static str,
    /// The owner, without addresses and offsets: [`PageOwner::group`].
    pub owner: String,
    /// Frames.
    pub pages: u64,
}

impl OwnerMap {
    /// The memory by owner: each owner with its number of frames, the largest first. The sum is the number of frames of
    /// the memory.
    #[must_use]
    pub fn shares(&self) -> Vec<Share> {
        let mut shares: HashMap<(&'static str, String), u64> = HashMap::new();
        let mut free = 0;
        for gfn in self.layout.gfns() {
            match self.explain(gfn) {
                PageOwner::Free => free += 1,
                owner => *shares.entry((owner.kind(), owner.group())).or_default() += 1,
            }
        }
        if free > 0 {
            shares.insert((PageOwner::Free.kind(), PageOwner::Free.group()), free);
        }
        let shares = shares.into_iter().map(|((kind, owner), pages)| Share { kind, owner, pages });
        let mut shares: Vec<Share> = shares.collect();
        shares.sort_by(|one, other| {
            (other.pages, one.kind, &one.owner).cmp(&(one.pages, other.kind, &other.owner))
        });
        shares
    }
}
