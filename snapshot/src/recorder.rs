//! The recorder: takes checkpoints of a machine and moves it to them.

mod audit;
mod baseline;
mod branch;
mod capture;
mod checkpoint;
mod dirty;
mod disks;
mod engine;
mod history;
mod page_plan;
mod pending;
mod pending_failure;
mod pipeline;
mod plan;
mod prepare;
mod report;
mod restore;
mod restore_plan;
mod retained_disks;
mod revert;
mod rollback;
mod settings;
mod staged_rollback;
mod staging;
mod target;
mod task;
mod undo;
mod worker;

pub use audit::{AuditReport, AuditStatus, AuditTiming, DiskAuditReport, DiskAuditStatus};
pub use branch::{BranchDisk, BranchPlan, BranchProgress, BranchReport, BranchRequest, BranchTiming};
pub use dirty::{Consumer, DirtyEpochs};
pub use engine::Recorder;
pub use pending::PendingCheckpoint;
pub use plan::RollbackPlan;
pub(crate) use prepare::{KEYFRAME_DISTANCE, KEYFRAME_ROWS_MIN};
pub use report::{
    CheckpointReport, CheckpointRequest, CheckpointTiming, CurrentPolicy, RollbackReport, RollbackRequest,
    RollbackTiming,
};
pub use settings::{MemoryUse, RecorderSettings};
