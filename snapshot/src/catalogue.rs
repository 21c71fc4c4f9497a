//! The catalogue: everything of a store but the contents, as tables.

mod abort;
mod archive;
mod boot;
mod branch;
mod checkpoint;
mod commit;
mod connection;
mod content;
mod disk;
mod event;
mod fact;
mod garbage;
mod import;
mod incident;
mod lineage;
mod machine;
mod operation;
mod page_version;
mod position;
mod query;
mod removal;
mod repair;
mod resolve;
mod rows;
mod schema;
mod setting;
mod state;
mod timeline;
mod verdict;
mod words;

pub use branch::BranchOrigin;
pub use checkpoint::{CheckpointKind, CheckpointRecord};
pub use connection::Catalogue;
pub use event::{EventRecord, EventSeverity};
pub use incident::{IncidentRecord, NewIncident};
pub use lineage::PrunedRecord;
pub use machine::{DesiredState, MachineRecord};
pub use operation::{OperationKind, OperationRecord, OperationStatus, RollbackKind};
pub use page_version::PageVersion;
pub use position::Position;
pub use repair::DamageMark;
pub use rows::Rows;
pub use timeline::TimelineRecord;
pub use verdict::{Verdict, VerdictRecord};

pub(crate) use archive::{Archived, Role, SHAPES, Space};
pub(crate) use branch::Branching;
pub(crate) use checkpoint::NewCheckpoint;
pub(crate) use commit::{
    CommitBatch, Committed, Hashes, NewContents, PreparedCheckpoint, RecordedOperation, Rollback,
};
pub(crate) use connection::Durability;
pub(crate) use content::{ContentPlace, NewContent, NewFrame, prefix};
pub(crate) use disk::{DiskLink, NewDiskVersion, ReparentedDisk};
pub(crate) use garbage::{FrameRow, Moved};
pub(crate) use import::MachineImport;
pub(crate) use lineage::Reparented;
pub(crate) use operation::NewOperation;
pub(crate) use page_version::{Keyframe, Link};
pub(crate) use state::{StoredSection, StoredState};
