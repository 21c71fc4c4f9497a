//! The driver for our own microVM: KVM inside this process, made to be checkpointed and taken back in place.

mod boot;
mod bus;
mod config;
mod device;
mod gate;
mod host;
mod machine;
mod state;
mod vcpu;
mod vm;

pub use boot::Boot;
pub use config::KvmConfig;
pub use machine::KvmMachine;
