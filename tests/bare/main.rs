//! A bare guest in a microVM with a store, on this host's KVM.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod branch;
#[path = "../../machine/tests/kvm/held.rs"]
mod held;
mod rollbacks;
