//! Tests of the store through its public interface: histories, damage, crashes, full disks, queries.
#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

mod archive;
mod audit;
mod branch;
mod catalogue;
mod concurrent_prune;
mod crash;
mod damage;
mod damage_everywhere;
mod disk;
mod disk_audit;
mod export;
mod failures;
mod formats;
mod full_disk;
mod history;
mod kill;
mod long_chain;
mod opening;
mod parallel_machines;
mod pauses;
mod repair;
mod retention;
mod rollback;
mod staged_rollback;
mod toy;
