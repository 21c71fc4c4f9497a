//! vCPUs: one thread each.

pub(super) mod cpuid;
mod msrs;
mod state;
mod thread;
mod tsc;

pub(super) use msrs::MsrList;
pub(super) use state::VcpuState;
pub(super) use thread::Vcpu;
