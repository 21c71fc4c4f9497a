//! What changed between two instants of one guest, described by the owners of its frames.

mod compare;
mod groups;
mod objects;
mod values;

use retrovisor_guest::Gfn;

pub use compare::compare;

/// A frame that differs, and the step (checkpoint) at which it first did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedFrame {
    /// The frame.
    pub gfn: Gfn,
    /// The first step at which it differed; steps ascend with time.
    pub since: u64,
}

/// What changed. Each list has an upper bound, and begins with the changes that are most useful for a diagnosis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Objects of known type, with their fields.
    pub objects: Vec<ObjectChange>,
    /// Objects of known type that changed and are not listed.
    pub objects_left_out: u64,
    /// Variables of the kernel and of its CPUs.
    pub variables: Vec<ObjectChange>,
    /// Variables that changed and are not listed.
    pub variables_left_out: u64,
    /// Files whose contents in memory changed.
    pub files: Vec<GroupChange>,
    /// Processes whose memory changed, by area.
    pub processes: Vec<GroupChange>,
    /// All frames by owner.
    pub owners: Vec<GroupChange>,
}

/// One structure that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectChange {
    /// The name of its type; empty for a variable of unknown type.
    pub structure: String,
    /// Which one: a name as text, a symbol.
    pub object: String,
    /// Its address.
    pub address: u64,
    /// The first step at which its frame differed.
    pub since: u64,
    /// The fields that changed, the most useful first.
    pub fields: Vec<FieldChange>,
    /// Fields that changed and are not listed.
    pub fields_left_out: u64,
}

/// One field that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// Its path in the structure; for a variable of unknown type the offset.
    pub field: String,
    /// The value before.
    pub before: String,
    /// The value after.
    pub after: String,
}

/// Frames of one owner that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupChange {
    /// The owner, as text.
    pub owner: String,
    /// Frames.
    pub pages: u64,
    /// The first step at which one of them differed.
    pub since: u64,
    /// First and last changed place: page numbers in a file, addresses in a process.
    pub range: Option<(u64, u64)>,
    /// Whether the owner had none of these frames at the first instant.
    pub new: bool,
}
