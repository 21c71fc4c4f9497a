//! A machine in memory for tests: no vCPU runs, and a script makes calls fail, hang, panic, or find the machine in
//! another state. Needs no driver: no KVM, no C, no unsafe code.
#![forbid(unsafe_code)]

mod disk;
mod known_frames;
mod machine;
mod memory;
mod script;

pub use known_frames::KnownFrames;
pub use machine::{MemoryMachine, Writer};
pub use script::{Action, Method, Script};
