//! How a guest starts.

mod acpi;
mod flat;
mod generation;
mod linux;
mod long_mode;
mod memory_map;
mod pvh;

use std::path::PathBuf;

use kvm_bindings::{kvm_regs, kvm_sregs};
use retrovisor_guest::{Gpa, MachineError, MemoryLayout};
use serde::{Deserialize, Serialize};

use super::virtio::Window;
use crate::ram::Ram;

pub(super) use acpi::{POWER_PORT, POWER_PORTS, SLEEP_ENABLE, SLEEP_TYPE_OFF};
pub(super) use generation::{GENERATION_ID, GENERATION_LINE};

/// What the vCPUs run first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Boot {
    /// A Linux kernel, started by the 64-bit boot protocol or at its entry for virtual machines (PVH); ACPI describes
    /// what the machine has.
    Linux {
        /// A bzImage, as distributions ship it, or a vmlinux (ELF).
        kernel: PathBuf,
        /// The initial RAM file system.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        append: String,
    },
    /// Code that needs no firmware: all vCPUs start at its first byte in 64-bit mode, memory is mapped one to one, RDI
    /// has the vCPU's number, RSI the end of memory. The first mebibyte is reserved for the monitor.
    Flat {
        /// The code.
        image: Vec<u8>,
        /// Its address: page-aligned, from 1 MiB on.
        at: Gpa,
    },
}

/// Where the vCPUs begin.
pub(super) struct Entry {
    /// Registers of the first vCPU.
    pub(super) regs: kvm_regs,
    /// The mode of the registers.
    pub(super) mode: Mode,
    /// Whether the others start with it, each with its number in RDI; else they wait to be woken by it.
    pub(super) all: bool,
}

/// The initial mode of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// 64 bits, memory mapped one to one.
    Long,
    /// 32 bits, no paging.
    Protected,
}

impl Boot {
    /// Writes everything that is needed into memory.
    pub(super) fn load(
        &self,
        ram: &Ram,
        layout: &MemoryLayout,
        vcpus: u32,
        virtio: &[Window],
    ) -> Result<Entry, MachineError> {
        long_mode::write_tables(ram, layout)?;
        match self {
            Self::Linux { kernel, initrd, append } => {
                acpi::write(ram, vcpus, virtio)?;
                linux::load(ram, layout, kernel, initrd.as_deref(), append)
            }
            Self::Flat { image, at } => flat::load(ram, layout, image, *at),
        }
    }
}

impl Entry {
    /// The initial registers of a vCPU; `sregs` are those after its creation. `None`: it waits.
    pub(super) fn registers(&self, vcpu: u32, sregs: &mut kvm_sregs) -> Option<kvm_regs> {
        if vcpu > 0 && !self.all {
            return None;
        }
        match self.mode {
            Mode::Long => long_mode::set_registers(sregs),
            Mode::Protected => long_mode::set_protected(sregs),
        }
        Some(if self.all { kvm_regs { rdi: u64::from(vcpu), ..self.regs } } else { self.regs })
    }
}
