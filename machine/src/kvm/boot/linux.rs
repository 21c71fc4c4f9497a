use std::fs::File;
use std::path::Path;

use kvm_bindings::kvm_regs;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader as _};
use retrovisor_guest::{Gpa, MachineError, MemoryLayout, PAGE_SIZE};
use vm_memory::{ByteValued as _, GuestAddress};

use super::{Entry, acpi};
use crate::ram::Ram;

/// The parameters that the kernel is started with.
const ZERO_PAGE: Gpa = Gpa(0x7000);
/// Its command line.
const COMMAND_LINE: Gpa = Gpa(0x6_0000);
const COMMAND_LINE_MAX: usize = 2048;
/// The kernel, where it would go by itself.
const KERNEL: u64 = 16 << 20;
/// Its 64-bit entry, from there on.
const ENTRY: u64 = 0x200;
/// Usable memory ends here; ACPI tables and what real machines have there follow.
const LOW_END: u64 = 0x9_fc00;
const FIRST_MIB: u64 = 1 << 20;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;
/// A loader without a number of its own.
const LOADER: u8 = 0xff;
/// The protocol that has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;

pub(super) fn load(
    ram: &Ram,
    layout: &MemoryLayout,
    kernel: &Path,
    initrd: Option<&Path>,
    append: &str,
) -> Result<Entry, MachineError> {
    let config = |what: String, help: &str| MachineError::Config { what, help: help.into() };
    if append.len() >= COMMAND_LINE_MAX || append.contains('\0') {
        return Err(config(
            format!("the kernel's command line has {} bytes", append.len()),
            "Up to 2047 are possible, without a zero byte",
        ));
    }
    let mut file = open(kernel)?;
    let loaded = BzImage::load(ram.map(), Some(GuestAddress(KERNEL)), &mut file, None).map_err(|error| {
        config(
            format!("{} cannot be loaded: {error}", kernel.display()),
            "It must be an x86-64 bzImage, and the guest have memory for it",
        )
    })?;
    let header = loaded.setup_header.filter(|header| header.xloadflags & XLF_KERNEL_64 != 0);
    let Some(mut header) = header else {
        return Err(config(format!("{} has no 64-bit entry", kernel.display()), "Use an x86-64 kernel"));
    };
    // Room to unpack itself into.
    let kernel_end = KERNEL + u64::from(header.init_size).max(loaded.kernel_end.saturating_sub(KERNEL));
    let low_end = layout.slots().first().map_or(0, |slot| slot.end().0);
    if kernel_end > low_end {
        return Err(config(
            format!("the kernel needs memory up to {} MiB", kernel_end >> 20),
            "Give the guest more memory",
        ));
    }
    if let Some(path) = initrd {
        let (at, length) =
            load_initrd(ram, path, kernel_end, low_end.min(u64::from(header.initrd_addr_max) + 1))?;
        (header.ramdisk_image, header.ramdisk_size) = (at, length);
    }
    let mut line = append.as_bytes().to_vec();
    line.push(0);
    ram.write(COMMAND_LINE, &line)?;
    header.type_of_loader = LOADER;
    header.boot_flag = BOOT_FLAG;
    header.header = HEADER;
    #[expect(clippy::cast_possible_truncation, reason = "both are small constants")]
    {
        header.cmd_line_ptr = COMMAND_LINE.0 as u32;
        header.cmdline_size = COMMAND_LINE_MAX as u32;
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: acpi::RSDP.0, ..boot_params::default() };
    let mut entries = 0;
    let mut map = |addr, size, type_| {
        params.e820_table[usize::from(entries)] = boot_e820_entry { addr, size, r#type: type_ };
        entries += 1;
    };
    map(0, LOW_END, E820_RAM);
    map(LOW_END, FIRST_MIB - LOW_END, E820_RESERVED);
    for slot in layout.slots() {
        let first = slot.gpa.0.max(FIRST_MIB);
        map(first, slot.end().0 - first, E820_RAM);
    }
    params.e820_entries = entries;
    ram.write(ZERO_PAGE, params.as_slice())?;
    let regs = kvm_regs { rip: KERNEL + ENTRY, rflags: 2, rsi: ZERO_PAGE.0, ..kvm_regs::default() };
    Ok(Entry { regs, all: false })
}

/// As high as the kernel looks, so that it is out of the way. Its address and length.
fn load_initrd(ram: &Ram, path: &Path, kernel_end: u64, end: u64) -> Result<(u32, u32), MachineError> {
    let bytes = std::fs::read(path)
        .map_err(|source| MachineError::Io { doing: format!("reading {}", path.display()), source })?;
    let at = end.saturating_sub(bytes.len() as u64) & !(PAGE_SIZE as u64 - 1);
    let (Ok(place), Ok(length)) = (u32::try_from(at), u32::try_from(bytes.len())) else {
        return Err(too_large(path, bytes.len()));
    };
    if at < kernel_end {
        return Err(too_large(path, bytes.len()));
    }
    ram.write(Gpa(at), &bytes)?;
    Ok((place, length))
}

fn too_large(path: &Path, bytes: usize) -> MachineError {
    MachineError::Config {
        what: format!("{} with its {} MiB does not fit beside the kernel", path.display(), bytes >> 20),
        help: "Give the guest more memory".into(),
    }
}

fn open(path: &Path) -> Result<File, MachineError> {
    File::open(path)
        .map_err(|source| MachineError::Io { doing: format!("opening {}", path.display()), source })
}
