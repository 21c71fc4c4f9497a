//! The engine that takes checkpoints of a machine and brings it back.

mod branch;
mod capture;
mod checkpoint;
mod dirty;
mod disks;
mod engine;
mod history;
mod journey;
mod kept_disks;
mod overwrite;
mod pending;
mod pipeline;
mod plan;
mod put;
mod put_back;
mod ready;
mod report;
mod restore;
mod rollback;
mod settings;
mod staging;
mod stand;
mod swift;
mod target;
mod task;
mod undo;
mod worker;

pub use branch::{BranchDisk, BranchPlan, BranchProgress, BranchReport, BranchRequest, BranchTiming};
pub use dirty::{Consumer, DirtyEpochs};
pub use engine::Recorder;
pub use pending::Pending;
pub use plan::RollbackPlan;
pub(crate) use ready::{KEYFRAME_DISTANCE, KEYFRAME_ROWS_MIN};
pub use report::{
    CheckpointReport, CheckpointRequest, CheckpointTiming, CurrentPolicy, RollbackReport, RollbackRequest,
    RollbackTiming,
};
pub use settings::{MemoryUse, RecorderSettings};
