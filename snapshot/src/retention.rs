//! What happens to a store over time: which checkpoints stay, how the others go, and how their space comes back.

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
mod rewrite;

pub use compact::CompactReport;
pub use options::CompactOptions;
pub use plan::{KeepReason, Kept, MachinePrune, PruneEstimate, PrunePlan, Removed};
pub use policy::RetentionPolicy;
pub use progress::{PruneProgress, PruneStep};
pub use prune::PruneReport;
