use retrovisor_guest::MemoryLayout;

use super::boot::Boot;

/// What a microVM is made of.
#[derive(Clone, Debug)]
pub struct KvmConfig {
    /// The machine's name.
    pub name: String,
    /// Where its memory lies.
    pub layout: MemoryLayout,
    /// Number of vCPUs, 1 to 8.
    pub vcpus: u32,
    /// What its vCPUs run first.
    pub boot: Boot,
    /// Whether it waits for [`retrovisor_guest::Machine::resume`] before the first instruction.
    pub paused: bool,
}
