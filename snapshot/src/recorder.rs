//! The engine that takes checkpoints of a machine and brings it back.

mod engine;
mod history;
mod put;
mod report;
mod restore;
mod rollback;
mod staging;
mod undo;

pub use engine::Recorder;
pub use report::{
    CheckpointReport, CheckpointRequest, CheckpointTiming, RollbackPlan, RollbackReport, RollbackRequest,
    RollbackTiming,
};
