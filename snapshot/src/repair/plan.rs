use std::collections::BTreeMap;

use serde::Serialize;

use crate::id::CheckpointId;

/// The effect of a repair. A plan changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepairPlan {
    /// What can be repaired.
    pub items: Vec<RepairItem>,
    /// The checkpoints that cannot be saved, as far as is known before the repair.
    pub lost: Vec<LostCheckpoint>,
    /// Damage that cannot be repaired, as text.
    pub beyond_repair: Vec<String>,
}

/// One thing that can be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepairItem {
    /// What is wrong, as text.
    pub damage: String,
    /// How it is repaired.
    pub action: RepairAction,
}

/// The kinds of repair. Each is checked against a hash before it is planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum RepairAction {
    /// The same bytes are at another place.
    Relink {
        /// The content.
        content: u64,
        /// The pack they are in.
        pack: u32,
        /// Byte offset of the frame.
        offset: u64,
        /// Length of the frame in bytes.
        stored_bytes: u32,
        /// Pages of the frame.
        pages: u32,
        /// The place in it.
        slot: u32,
    },
    /// The list of changed pages follows from full maps.
    RebuildChanges {
        /// The checkpoint.
        checkpoint: CheckpointId,
    },
    /// The list of changed pages is undamaged, and belongs to another parent than the one in the catalogue.
    Reparent {
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// Its parent.
        parent: CheckpointId,
    },
    /// The full map follows from the changes.
    RebuildMap {
        /// The checkpoint.
        checkpoint: CheckpointId,
    },
    /// How much of a pack belongs to checkpoints follows from its frames.
    RebuildPack {
        /// The pack.
        pack: u32,
        /// Bytes that belong to checkpoints.
        committed_bytes: u64,
    },
    /// The index of hashes follows from the contents.
    RebuildIndex,
}

/// A checkpoint that cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostCheckpoint {
    /// The number that joins the tables.
    pub id: CheckpointId,
    /// The short id.
    pub name: String,
    /// What is lost of it.
    pub what: Vec<String>,
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Items of the plan that were done.
    pub repaired: u64,
    /// Items of the plan that could not be done, as text.
    pub failed: Vec<String>,
    /// The checkpoints that are marked now: they are refused as targets.
    pub lost: Vec<LostCheckpoint>,
    /// Checkpoints that were marked before and are complete again, by short id.
    pub recovered: Vec<String>,
    /// Damage that remains, as text: it affects marked checkpoints, or none.
    pub remaining: Vec<String>,
}

impl RepairPlan {
    /// Whether there is nothing to do, and nothing is lost.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.items.is_empty() && self.lost.is_empty() && self.beyond_repair.is_empty()
    }

    pub(super) fn add(&mut self, damage: impl Into<String>, action: RepairAction) {
        self.items.push(RepairItem { damage: damage.into(), action });
    }
}

/// The damage of checkpoints, gathered.
pub(super) type ByCheckpoint = BTreeMap<CheckpointId, Vec<String>>;
