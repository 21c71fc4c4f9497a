//! The driver of the microVM: KVM in this process, designed for checkpoints and rollback in place.

#[cfg(feature = "bare-guests")]
pub mod bare;
mod boot;
mod bus;
mod compare;
mod config;
mod console;
mod device;
mod dirty_log;
mod disk;
mod driver;
mod equipment;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod host;
mod hubs;
mod input_gate;
mod interrupt;
mod layout;
mod machine;
mod net;
mod state;
mod template;
mod vcpu;
mod virtio;
mod vm;
mod worker;

pub use boot::Boot;
pub use compare::compare_states;
pub use config::{KvmConfig, MemorySource, NetConfig};
pub use console::ConsoleInput;
pub use console::output::ConsoleOutput;
pub use disk::DiskConfig;
pub use driver::{KvmDriver, WORKER_VERB};
pub use layout::memory_layout;
pub use machine::KvmMachine;
pub use net::hub::{Hub, HubTraffic};
pub use net::link::NetBackend;
pub use net::status::NetStatus;
pub use template::{Template, TemplateWriter};
pub use virtio::VirtioModel;
pub use worker::{Confinement, Limits, RemoteConfig, RemoteMachine, worker_process};
