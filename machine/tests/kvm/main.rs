//! The microVM on the KVM of this host, with bare guests: real vCPUs, real dirty log.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bare;
mod confinement;
mod console;
mod disk;
mod held;
mod known_frames;
mod network;
mod ordinary_user;
mod past;
mod pausing;
mod rollback;
mod timers;
mod vectors;
mod worker;
mod worker_disk;
