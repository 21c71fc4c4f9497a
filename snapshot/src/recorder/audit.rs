//! The audit: compares memory that was not reported as dirty with the catalogue.
//!
//! A checkpoint is exact only if the driver reports every frame that was written. At each capture some frames that were
//! not reported are copied in the pause, and compared when the guest runs again (docs/audit.md).

mod compare;
mod full;
mod ledger;
mod outcome;
mod sample;
mod sampler;
mod status;
mod walk;

pub use full::{AuditReport, AuditTiming};
pub use status::AuditStatus;

pub(super) use outcome::{StoredCheckpoint, settle};
pub(super) use sample::Sampled;
pub(super) use sampler::Sampler;
pub(super) use status::{AuditState, SharedAudit};
