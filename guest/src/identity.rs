use std::fmt;

use serde::{Deserialize, Serialize};

use crate::MemoryLayout;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM with hardware virtualization.
    Kvm,
    /// QEMU's translator (TCG).
    Tcg,
    /// Nothing: a memory-only machine.
    None,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::None => "none",
        })
    }
}

/// The properties that must match before a state is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIdentity {
    /// The name given by the user.
    pub name: String,
    /// The driver: `qemu`, `kvm`, `memory`.
    pub driver: String,
    /// The driver's version (QEMU's, or that of this project).
    pub version: String,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The address ranges of its memory.
    pub layout: MemoryLayout,
}
