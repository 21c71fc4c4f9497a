//! What the tests of several crates need in place of a virtual machine. Compiles no driver: no KVM, no C, no unsafe code.
#![forbid(unsafe_code)]

mod known_frames;

pub use known_frames::KnownFrames;
