use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::block_map::BlockMap;
use super::delta::{Change, Delta, Stored, fold};

/// The initial disk: never released.
const ROOT: u64 = 0;

/// The captured states of a disk, as a tree: each with the blocks that were written since its parent.
///
/// Capturing has a constant cost; changing to another state costs as much as differs; releasing one, the smaller of two
/// deltas.
pub(super) struct History {
    nodes: BTreeMap<u64, Node>,
    /// The parent of the current state.
    at: u64,
    /// The blocks written since then. Their slots belong to the current state alone.
    since: Delta,
    next: u64,
}

struct Node {
    parent: u64,
    children: Vec<u64>,
    delta: Arc<Delta>,
    kept: bool,
    pin: Pin,
}

/// Keeps the slots of a state from being freed.
pub(super) type Pin = Arc<()>;

impl History {
    pub(super) fn new() -> Self {
        let root = Node {
            parent: ROOT,
            children: Vec::new(),
            delta: Arc::default(),
            kept: true,
            pin: Pin::default(),
        };
        Self { nodes: BTreeMap::from([(ROOT, root)]), at: ROOT, since: Delta::new(), next: ROOT + 1 }
    }

    /// Whether the current state has a slot of its own for a block, which may then be overwritten.
    pub(super) fn owned(&self, block: u64) -> Option<u32> {
        match self.since.get(&block)?.new {
            Stored::Slot(slot) => Some(slot),
            _ => None,
        }
    }

    /// Records a write of a block: its old and its new slot. A slot that no state has any more is freed.
    pub(super) fn record(&mut self, block: u64, change: Change, freed: &mut Vec<u32>) {
        self.since
            .entry(block)
            .and_modify(|since| {
                if let (Stored::Slot(slot), true) = (since.new, since.new != change.new) {
                    freed.push(slot);
                }
                since.new = change.new;
            })
            .or_insert(change);
    }

    /// Retains the current state.
    pub(super) fn capture(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        let node = Node {
            parent: self.at,
            children: Vec::new(),
            delta: Arc::new(std::mem::take(&mut self.since)),
            kept: true,
            pin: Pin::default(),
        };
        if let Some(parent) = self.nodes.get_mut(&self.at) {
            parent.children.push(id);
        }
        self.nodes.insert(id, node);
        self.at = id;
        id
    }

    /// Retained states, in the order of their capture.
    pub(super) fn kept(&self) -> impl Iterator<Item = u64> + '_ {
        self.nodes.iter().filter(|(id, node)| node.kept && **id != ROOT).map(|(id, _)| *id)
    }

    pub(super) fn is_kept(&self, id: u64) -> bool {
        id != ROOT && self.nodes.get(&id).is_some_and(|node| node.kept)
    }

    /// Makes a retained state the current one: `map` is changed to it.
    pub(super) fn go_to(&mut self, id: u64, map: &mut BlockMap, freed: &mut Vec<u32>) {
        for (block, change) in self.since.drain() {
            map.set(block, change.old);
            if let Stored::Slot(slot) = change.new {
                freed.push(slot);
            }
        }
        let (up, down) = self.path(self.at, id);
        for delta in &up {
            delta.iter().for_each(|(block, change)| map.set(*block, change.old));
        }
        for delta in &down {
            delta.iter().for_each(|(block, change)| map.set(*block, change.new));
        }
        drop((up, down));
        self.at = id;
        self.sweep(freed);
    }

    /// Releases a state.
    pub(super) fn release(&mut self, id: u64, freed: &mut Vec<u32>) {
        if let (Some(node), true) = (self.nodes.get_mut(&id), id != ROOT) {
            node.kept = false;
        }
        self.sweep(freed);
    }

    /// What must be read to compare two retained states; without `since`, to compare one with the initial disk.
    pub(super) fn between(&self, since: Option<u64>, at: u64) -> Option<Between> {
        let pin = Arc::clone(&self.nodes.get(&at)?.pin);
        let (up, down) = self.path(since.unwrap_or(ROOT), at);
        Some(Between { up, down, pin })
    }

    /// Where the blocks of a state in the tree are; `map` has the places of the current one.
    pub(super) fn places(&self, at: u64, blocks: Range<u64>, map: &BlockMap) -> Vec<Stored> {
        let (up, down) = self.path(self.at, at);
        let place = |block| {
            let mut place = map.get(block);
            let mut follow = |delta: &Delta, side: fn(&Change) -> Stored| {
                if let Some(change) = delta.get(&block) {
                    place = side(change);
                }
            };
            follow(&self.since, |change| change.old);
            for delta in &up {
                follow(delta, |change| change.old);
            }
            for delta in &down {
                follow(delta, |change| change.new);
            }
            place
        };
        blocks.map(place).collect()
    }

    /// Keeps a state's slots from being freed; `None` if it is not in the tree.
    pub(super) fn pin(&self, id: u64) -> Option<Pin> {
        Some(Arc::clone(&self.nodes.get(&id)?.pin))
    }

    /// The deltas from one state up to the common ancestor, and from there down.
    fn path(&self, from: u64, to: u64) -> (Vec<Arc<Delta>>, Vec<Arc<Delta>>) {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        // A parent has a lower number than its children.
        let (mut left, mut right) = (from, to);
        while left != right {
            let (side, deltas) = if left > right { (&mut left, &mut up) } else { (&mut right, &mut down) };
            let Some(node) = self.nodes.get(side) else { break };
            deltas.push(Arc::clone(&node.delta));
            *side = node.parent;
        }
        down.reverse();
        (up, down)
    }

    /// Removes the states that are not needed.
    fn sweep(&mut self, freed: &mut Vec<u32>) {
        let unkept: Vec<u64> =
            self.nodes.iter().rev().filter(|(_, node)| !node.kept).map(|(id, _)| *id).collect();
        for id in unkept {
            let mut next = Some(id);
            while let Some(id) = next {
                next = self.collapse(id, freed);
            }
        }
    }

    /// Removes a state that at most one state depends on. Returns the state to check next.
    fn collapse(&mut self, id: u64, freed: &mut Vec<u32>) -> Option<u64> {
        let node = self.nodes.get(&id)?;
        let present = self.at == id;
        let dependents = node.children.len() + usize::from(present);
        if node.kept || id == ROOT || dependents > 1 || Arc::strong_count(&node.pin) > 1 {
            return None;
        }
        let Node { parent, children, delta, .. } = self.nodes.remove(&id)?;
        let delta = Arc::try_unwrap(delta).unwrap_or_else(|shared| (*shared).clone());
        let siblings = self.nodes.get_mut(&parent).map(|node| &mut node.children);
        if let Some(siblings) = siblings {
            siblings.retain(|sibling| *sibling != id);
            siblings.extend(&children);
        }
        if present {
            self.since = fold(delta, std::mem::take(&mut self.since), freed);
            self.at = parent;
            return None;
        }
        if let Some(child) = children.first().and_then(|child| self.nodes.get_mut(child)) {
            let later =
                Arc::try_unwrap(std::mem::take(&mut child.delta)).unwrap_or_else(|shared| (*shared).clone());
            child.delta = Arc::new(fold(delta, later, freed));
            child.parent = parent;
            return None;
        }
        freed.extend(delta.values().filter_map(|change| match change.new {
            Stored::Slot(slot) => Some(slot),
            _ => None,
        }));
        Some(parent)
    }
}

/// The path from one state to another.
pub(super) struct Between {
    up: Vec<Arc<Delta>>,
    down: Vec<Arc<Delta>>,
    pin: Pin,
}

impl Between {
    /// The blocks that were written on the path and their places at its end, ascending; and a guard that keeps the
    /// slots.
    pub(super) fn blocks(self) -> (Vec<(u64, Stored)>, Pin) {
        let mut blocks = HashMap::new();
        for delta in &self.up {
            blocks.extend(delta.iter().map(|(block, change)| (*block, change.old)));
        }
        for delta in &self.down {
            blocks.extend(delta.iter().map(|(block, change)| (*block, change.new)));
        }
        let mut blocks: Vec<_> = blocks.into_iter().collect();
        blocks.sort_unstable_by_key(|(block, _)| *block);
        (blocks, self.pin)
    }
}
