//! Tests of crash safety, on every file system call of a real process.
//!
//! A child process ([`story`]) runs a random history in a store: checkpoints, rollbacks, undo, redo, facts, closing and
//! opening again. Its parent traces it with ptrace ([`trace`]) and so records, in one order, all writes to the disk:
//! packs, the catalogue, its write-ahead log, the key, directories, whichever part of the program makes them.
//! From that log [`disk`] rebuilds the disks that a power cut could have left behind, and [`check`] opens the store on
//! each of them. The same tracer makes calls fail, for a disk that is full at any moment.
//!
//! `docs/crash-safety.md` describes what this tests and what it does not.

mod check;
mod disk;
mod full;
mod power_cut;
mod random;
mod story;
mod trace;
