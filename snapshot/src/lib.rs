//! The snapshot store: packs, catalogue, timelines, capture and restore.
//!
//! A [`Store`] is one directory. A [`Recorder`] takes checkpoints of one machine and moves the machine back to them;
//! the [`Catalogue`] lists what is stored; [`Store::view`] reads a checkpoint's memory.
#![forbid(unsafe_code)]

mod catalogue;
mod clock;
mod content;
mod content_list;
mod content_writer;
mod damage;
mod disk;
mod error;
mod export;
mod fair_lock;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod key;
mod lock;
mod mutex;
mod pack;
mod page_cache;
mod page_map;
mod parallel;
mod reads;
mod recorder;
mod repair;
mod retention;
mod store;
mod varint;

pub use catalogue::{
    BranchOrigin, Catalogue, CheckpointKind, CheckpointRecord, DamageMark, DesiredState, EventRecord,
    EventSeverity, IncidentRecord, MachineRecord, NewIncident, OperationKind, OperationRecord,
    OperationStatus, PageVersion, Position, PrunedRecord, RollbackKind, Rows, TimelineRecord, Verdict,
    VerdictRecord,
};
pub use clock::now_ms;
pub use content::{ContentId, ContentRef};
pub use damage::Damage;
pub use disk::{DiskImage, DiskRecord};
pub use error::{Error, Result};
pub use export::{ARCHIVE_MAGIC, ArchiveReport, DumpFormat, ExportProgress, ExportReport, ImportReport};
pub use id::{CheckpointId, DiskId, EventId, IncidentId, MachineId, OperationId, TimelineId};
pub use reads::Reads;
pub use recorder::{
    AuditReport, AuditStatus, AuditTiming, BranchDisk, BranchPlan, BranchProgress, BranchReport,
    BranchRequest, BranchTiming, CheckpointReport, CheckpointRequest, CheckpointTiming, Consumer,
    CurrentPolicy, DirtyEpochs, DiskAuditReport, DiskAuditStatus, MemoryUse, PendingCheckpoint, Recorder,
    RecorderSettings, RollbackPlan, RollbackReport, RollbackRequest, RollbackTiming,
};
pub use repair::{LostCheckpoint, RepairAction, RepairItem, RepairPlan, RepairReport};
pub use retention::{
    CompactOptions, CompactReport, KeepReason, Kept, MachinePrune, PruneEstimate, PrunePlan, PruneProgress,
    PruneReport, PruneStep, RemovalPlan, RemovalReport, Removed, RetentionPolicy,
};
pub use store::{
    Access, CheckpointView, PageChange, Store, StoreOptions, VerifyProgress, VerifyReport, image_hash,
};
