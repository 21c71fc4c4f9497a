//! Repair of a damaged store: derives what can be derived, and marks what is lost.

mod apply;
mod contents;
mod lists;
mod lost;
mod plan;
mod survey;

pub use plan::{LostCheckpoint, RepairAction, RepairItem, RepairPlan, RepairReport};
