//! Manages the machines of one store: starts and attaches them, takes their checkpoints, rolls them back.
//!
//! A [`Manager`] runs one actor thread per machine. Callers send it [`Command`]s with [`Manager::ask`] and follow
//! [`Event`]s with [`Manager::watch`]. There is no network and no terminal here: those are the service's.
#![forbid(unsafe_code)]

mod actor;
mod arrival;
mod ask;
mod branch;
mod bring_up;
mod command;
mod commands;
mod driver_calls;
mod error;
mod evaluator;
mod event;
mod held_paused;
mod inject;
mod kernels;
mod lifecycle;
mod manager;
mod moving;
mod panics;
mod process_guard;
mod processes;
mod reattach;
mod removal;
mod reservation;
mod reservations;
mod rollback;
mod rollback_plan;
mod shape;
mod spec;
mod status;
mod unreferenced_disks;
mod watched_vm;

pub use branch::{Branched, PlannedBranch};
pub use command::{Command, Reply};
pub use error::ManagerError;
pub use evaluator::{Evaluate, Evaluated, MakeEvaluator};
pub use event::{Event, EventKind};
pub use inject::Fault;
pub use kernels::kernel_library;
pub use lifecycle::{CommandKind, Lifecycle, PausedBy, Rule, help, rule, table};
pub use manager::{Manager, runtime_dir};
pub use removal::PlannedRemoval;
pub use retrovisor_snapshot::RollbackKind;
pub use rollback::Rollback;
pub use spec::{INTERVAL_MIN_MS, MachineSpec, Origin};
pub use status::MachineStatus;
