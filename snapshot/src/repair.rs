//! Repair of a damaged store: what can be derived is derived, what is lost is marked.

mod apply;
mod contents;
mod lists;
mod lost;
mod plan;
mod survey;

pub use plan::{LostCheckpoint, RepairAction, RepairItem, RepairPlan, RepairReport};
