//! The store from outside: histories, damage, crashes, full disks, and what people ask.
#![allow(clippy::unwrap_used, reason = "a failure is what a test is for")]

mod archive;
mod ask;
mod branch;
mod crash;
mod damage;
mod damage_everywhere;
mod disk;
mod export;
mod failures;
mod formats;
mod full_disk;
mod history;
mod kill;
mod long_chain;
mod meanwhile;
mod opening;
mod repair;
mod retention;
mod swift;
mod together;
mod toy;
mod travel;
