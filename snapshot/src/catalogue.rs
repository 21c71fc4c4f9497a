//! The catalogue: everything of a store that people ask for, as tables.

mod abort;
mod checkpoint;
mod commit;
mod connection;
mod content;
mod disk;
mod fact;
mod garbage;
mod incident;
mod lineage;
mod machine;
mod mending;
mod operation;
mod page_version;
mod position;
mod query;
mod resolve;
mod schema;
mod setting;
mod state;
mod timeline;
mod verdict;

pub use checkpoint::{CheckpointKind, CheckpointRecord};
pub use connection::Catalogue;
pub use incident::{IncidentRecord, NewIncident};
pub use lineage::PrunedRecord;
pub use machine::MachineRecord;
pub use mending::DamageMark;
pub use operation::{OperationKind, OperationRecord, OperationStatus};
pub use page_version::PageVersion;
pub use position::Position;
pub use query::Rows;
pub use timeline::TimelineRecord;
pub use verdict::{Verdict, VerdictRecord};

pub(crate) use checkpoint::NewCheckpoint;
pub(crate) use commit::{Commit, Committed, Hashes, Moment, Move, Noted};
pub(crate) use connection::{Durability, lock};
pub(crate) use content::{ContentPlace, NewContent, NewFrame, prefix};
pub(crate) use disk::{DiskLink, NewDiskVersion};
pub(crate) use garbage::{FrameRow, Moved};
pub(crate) use lineage::{Reparented, ReparentedDisk};
pub(crate) use operation::NewOperation;
pub(crate) use page_version::{Keyframe, Link};
pub(crate) use state::{StoredSection, StoredState};
