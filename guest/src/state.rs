use serde::{Deserialize, Serialize};

use crate::VcpuRegisters;

/// The complete state of a machine at one instant, except its memory.
///
/// Small parts are plain data. State that only the driver can interpret is in named sections of bytes, which a store
/// keeps like any other content (hashed, deduplicated, compressed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    /// One entry for each vCPU, in the order of their ids.
    pub vcpus: Vec<VcpuRegisters>,
    /// The driver's state (vCPUs in full, interrupt controllers, clocks, devices).
    pub sections: Vec<StateSection>,
    /// Disks, each as a name for its contents at this instant.
    pub disks: Vec<DiskState>,
}

/// Bytes that only the driver can interpret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSection {
    /// The format and its version: `qemu-vmstate/7.2`, `kvm-vcpu/1`.
    pub format: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The contents of a disk at one instant, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// The disk's name in the machine: `d0`.
    pub disk: String,
    /// The driver's name of these contents: for qcow2 the internal snapshot's name.
    /// Empty: the contents that the disk has when the state is applied.
    pub reference: String,
}

impl DiskState {
    /// Applying a state with this leaves the disk's contents unchanged, because its blocks were written before.
    #[must_use]
    pub fn unchanged(disk: &str) -> Self {
        Self { disk: disk.to_owned(), reference: String::new() }
    }
}
