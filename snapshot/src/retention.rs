//! Retention: which checkpoints stay, how the others are removed, and how their space is freed.

mod compact;
mod garbage;
mod mark;
mod merge;
mod options;
mod pin;
mod plan;
mod policy;
mod progress;
mod prune;
mod removal;
mod rewrite;

pub use compact::CompactReport;
pub use options::CompactOptions;
pub use plan::{KeepReason, Kept, MachinePrune, PruneEstimate, PrunePlan, Removed};
pub use policy::RetentionPolicy;
pub use progress::{PruneProgress, PruneStep};
pub use prune::PruneReport;
pub use removal::{RemovalPlan, RemovalReport};
