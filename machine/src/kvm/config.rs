use std::fs::File;
use std::sync::Arc;

use retrovisor_guest::{MachineError, MemoryLayout};

use super::boot::Boot;
use super::disk::DiskConfig;
use super::net::link::NetBackend;
use super::template::Template;
use crate::ram::Ram;
use retrovisor_guest::MacAddress;

/// The configuration of a microVM.
#[derive(Clone, Debug)]
pub struct KvmConfig {
    /// The machine's name.
    pub name: String,
    /// The address ranges of its memory.
    pub layout: MemoryLayout,
    /// The initial contents of its memory.
    pub memory: MemorySource,
    /// Number of vCPUs, 1 to 8.
    pub vcpus: u32,
    /// The code that its vCPUs run first.
    pub boot: Boot,
    /// Its disks, each in turn as `/dev/vda`, `/dev/vdb`…
    pub disks: Vec<DiskConfig>,
    /// Its network interfaces, in order.
    pub nets: Vec<NetConfig>,
    /// Whether it has a control channel: a second console, `hvc0` in a Linux guest.
    pub channel: bool,
    /// Whether it waits for [`retrovisor_guest::Machine::resume`] before the first instruction.
    pub paused: bool,
}

/// A network interface of a microVM.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// What it is connected to.
    pub backend: NetBackend,
    /// Its address; without one, it has [`MacAddress::of_machine`].
    pub mac: Option<MacAddress>,
}

/// The initial contents of a microVM's memory.
#[derive(Clone, Debug, Default)]
pub enum MemorySource {
    /// Zeros, and the data of [`Boot`].
    #[default]
    Fresh,
    /// The same, in a file that other processes map as well: the slots follow one another from its beginning. It must
    /// not become shorter.
    Shared(Arc<File>),
    /// The same file, which another process that maps it fills with the memory of another instant. [`KvmConfig::boot`]
    /// is ignored: the machine waits for [`retrovisor_guest::StateIo::apply_state`] with the state of that instant,
    /// then for `resume`.
    Awaited(Arc<File>),
    /// The memory of another instant, shared until it is written. [`KvmConfig::boot`] is ignored: the machine waits for
    /// [`retrovisor_guest::StateIo::apply_state`] with the state of that instant, then for `resume`.
    Template(Template),
}

impl MemorySource {
    /// The memory of a machine with that layout.
    pub(super) fn map(&self, layout: &MemoryLayout) -> Result<Ram, MachineError> {
        match self {
            Self::Fresh => Ram::anonymous(layout.clone()),
            Self::Shared(file) | Self::Awaited(file) => Ram::shared(layout.clone(), Arc::clone(file), 0),
            Self::Template(template) => {
                if template.layout() != layout {
                    return Err(MachineError::Mismatch {
                        what: "the layout of a template's memory".into(),
                        expected: "another one".into(),
                        found: "this machine's".into(),
                    });
                }
                Ram::private(layout.clone(), template.file())
            }
        }
    }
}
