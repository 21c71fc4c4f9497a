//! The engine that takes checkpoints of a machine and brings it back.

mod capture;
mod checkpoint;
mod engine;
mod history;
mod put;
mod put_back;
mod report;
mod restore;
mod rollback;
mod staging;
mod target;
mod undo;

pub use engine::Recorder;
pub use report::{
    CheckpointReport, CheckpointRequest, CheckpointTiming, RollbackPlan, RollbackReport, RollbackRequest,
    RollbackTiming,
};
