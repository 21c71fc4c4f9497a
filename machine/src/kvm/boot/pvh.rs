use kvm_bindings::kvm_regs;
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use retrovisor_guest::{Gpa, MachineError};
use vm_memory::ByteValued as _;

use super::memory_map::Part;
use super::{Entry, Mode, acpi};
use crate::ram::Ram;

/// What the kernel is started with; the list of modules and the map of memory follow.
const START_INFO: Gpa = Gpa(0x7000);
const MODULES: Gpa = Gpa(0x7080);
const MEMORY_MAP: Gpa = Gpa(0x70c0);
/// "xEn3", as the protocol has it from where it comes.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a map of memory.
const VERSION: u32 = 1;

/// Starts a kernel at its entry for virtual machines: 32-bit protected mode without paging.
pub(super) fn start(
    ram: &Ram,
    map: &[Part],
    command_line: Gpa,
    initrd: Option<(u32, u32)>,
    entry: u64,
) -> Result<Entry, MachineError> {
    let mut at = MEMORY_MAP;
    for part in map {
        let part =
            hvm_memmap_table_entry { addr: part.first, size: part.bytes, type_: part.kind, reserved: 0 };
        ram.write(at, part.as_slice())?;
        at.0 += part.as_slice().len() as u64;
    }
    if let Some((paddr, size)) = initrd {
        let module =
            hvm_modlist_entry { paddr: paddr.into(), size: size.into(), ..hvm_modlist_entry::default() };
        ram.write(MODULES, module.as_slice())?;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: MODULES.0,
        cmdline_paddr: command_line.0,
        rsdp_paddr: acpi::RSDP.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    ram.write(START_INFO, info.as_slice())?;
    let regs = kvm_regs { rip: entry, rflags: 2, rbx: START_INFO.0, ..kvm_regs::default() };
    Ok(Entry { regs, mode: Mode::Protected, all: false })
}
