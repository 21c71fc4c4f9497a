//! The whole path on real guests: the command, the daemon over its socket, stock QEMU, the store on disk.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod attached;
mod bad_input;
mod branch;
mod crash;
mod daemon;
mod demo;
mod difference;
mod disk;
mod full_store;
mod guest_ends;
mod hot_plug;
mod owner;
mod processes;
mod prune;
mod restart;
mod restore;
