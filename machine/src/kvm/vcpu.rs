//! vCPUs: one thread each.

mod core;
pub(super) mod cpuid;
mod msrs;
mod shape;
mod state;
mod thread;
pub(super) mod tsc;

pub(super) use shape::Shape;
pub(super) use state::VcpuState;
pub(super) use thread::Vcpu;
