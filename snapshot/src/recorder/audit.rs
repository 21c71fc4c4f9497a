//! The audit: compares memory that was not reported as dirty, and blocks of disks, with the catalogue.
//!
//! A checkpoint is exact only if the driver reports every frame and every block that was written. At each capture some
//! frames that were not reported are copied in the pause, and compared when the guest runs again. Blocks are read from
//! the captured state then, which does not change (docs/audit.md).

mod block_comparison;
mod compare;
mod coverage;
mod disk_ledger;
mod disks;
mod full;
mod full_disks;
mod ledger;
mod outcome;
mod report;
mod sample;
mod sampler;
mod settle;
mod status;
mod walk;

pub use disk_ledger::DiskAuditStatus;
pub use report::{AuditReport, AuditTiming, DiskAuditReport};
pub use status::AuditStatus;

pub(super) use sample::Sampled;
pub(super) use sampler::Sampler;
pub(super) use settle::{StoredCheckpoint, settle};
pub(super) use status::{AuditState, SharedAudit};
