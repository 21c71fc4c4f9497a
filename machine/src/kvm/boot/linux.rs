use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use kvm_bindings::kvm_regs;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader as _};
use retrovisor_guest::{Gpa, MachineError, MemoryLayout, PAGE_SIZE};
use vm_memory::{ByteValued as _, GuestAddress};

use super::memory_map::{FIRST_MIB, memory_map};
use super::{Entry, Mode, acpi, pvh};
use crate::ram::Ram;

/// The parameters that the kernel is started with.
const ZERO_PAGE: Gpa = Gpa(0x7000);
/// Its command line.
const COMMAND_LINE: Gpa = Gpa(0x6_0000);
const COMMAND_LINE_MAX: usize = 2048;
/// The default address of the kernel.
const KERNEL: u64 = 16 << 20;
/// Offset of its 64-bit entry.
const ENTRY: u64 = 0x200;
/// How a vmlinux begins.
const ELF: [u8; 4] = *b"\x7fELF";
/// The bound on the initramfs's address is not in a vmlinux: this is that of all kernels.
const INITRD_END: u64 = 0x8000_0000;
/// Alignment of kernels.
const ALIGNMENT: u32 = 2 << 20;
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
    let mut line = append.as_bytes().to_vec();
    line.push(0);
    ram.write(COMMAND_LINE, &line)?;
    let mut file = open(kernel)?;
    let mut magic = [0; ELF.len()];
    // A shorter file is not a kernel either.
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == ELF;
    if is_elf {
        elf(ram, layout, kernel, &mut file, initrd)
    } else {
        bzimage(ram, layout, kernel, &mut file, initrd)
    }
}

/// A bzImage, which unpacks itself.
fn bzimage(
    ram: &Ram,
    layout: &MemoryLayout,
    kernel: &Path,
    file: &mut File,
    initrd: Option<&Path>,
) -> Result<Entry, MachineError> {
    let loaded = BzImage::load(ram.map(), Some(GuestAddress(KERNEL)), file, None)
        .map_err(|error| unusable(kernel, &error))?;
    let header = loaded.setup_header.filter(|header| header.xloadflags & XLF_KERNEL_64 != 0);
    let Some(mut header) = header else {
        return Err(MachineError::Config {
            what: format!("{} has no 64-bit entry", kernel.display()),
            help: "Use an x86-64 kernel".into(),
        });
    };
    // The room that it needs for unpacking.
    let kernel_end = KERNEL + u64::from(header.init_size).max(loaded.kernel_end.saturating_sub(KERNEL));
    let initrd_max = u64::from(header.initrd_addr_max) + 1;
    if let Some((at, length)) = place_initrd(ram, layout, initrd, kernel_end, initrd_max)? {
        (header.ramdisk_image, header.ramdisk_size) = (at, length);
    }
    start(ram, layout, header, KERNEL + ENTRY)
}

/// A vmlinux. If it has an entry for virtual machines (PVH), that is used.
fn elf(
    ram: &Ram,
    layout: &MemoryLayout,
    kernel: &Path,
    file: &mut File,
    initrd: Option<&Path>,
) -> Result<Entry, MachineError> {
    let loaded = Elf::load(ram.map(), None, file, Some(GuestAddress(FIRST_MIB)))
        .map_err(|error| unusable(kernel, &error))?;
    let initrd = place_initrd(ram, layout, initrd, loaded.kernel_end, INITRD_END)?;
    if let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap {
        return pvh::start(ram, &memory_map(layout), COMMAND_LINE, initrd, entry.0);
    }
    let mut header = setup_header { kernel_alignment: ALIGNMENT, ..setup_header::default() };
    if let Some((at, length)) = initrd {
        (header.ramdisk_image, header.ramdisk_size) = (at, length);
    }
    start(ram, layout, header, loaded.kernel_load.0)
}

/// Starts by the 64-bit protocol.
fn start(
    ram: &Ram,
    layout: &MemoryLayout,
    mut header: setup_header,
    entry: u64,
) -> Result<Entry, MachineError> {
    header.type_of_loader = LOADER;
    header.boot_flag = BOOT_FLAG;
    header.header = HEADER;
    #[expect(clippy::cast_possible_truncation, reason = "both are small constants")]
    {
        header.cmd_line_ptr = COMMAND_LINE.0 as u32;
        header.cmdline_size = COMMAND_LINE_MAX as u32;
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: acpi::RSDP.0, ..boot_params::default() };
    let map = memory_map(layout);
    for (place, part) in params.e820_table.iter_mut().zip(&map) {
        *place = boot_e820_entry { addr: part.first, size: part.bytes, r#type: part.kind };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    ram.write(ZERO_PAGE, params.as_slice())?;
    let regs = kvm_regs { rip: entry, rflags: 2, rsi: ZERO_PAGE.0, ..kvm_regs::default() };
    Ok(Entry { regs, mode: Mode::Long, all: false })
}

/// Puts the initial RAM file system at the highest address that the kernel accepts, so that it does not overlap the
/// kernel.
fn place_initrd(
    ram: &Ram,
    layout: &MemoryLayout,
    initrd: Option<&Path>,
    kernel_end: u64,
    initrd_end: u64,
) -> Result<Option<(u32, u32)>, MachineError> {
    let low_end = layout.slots().first().map_or(0, |slot| slot.end().0);
    if kernel_end > low_end {
        return Err(MachineError::Config {
            what: format!("the kernel needs memory up to {} MiB", kernel_end >> 20),
            help: "Give the guest more memory".into(),
        });
    }
    initrd.map(|path| load_initrd(ram, path, kernel_end, low_end.min(initrd_end))).transpose()
}

fn unusable(kernel: &Path, error: &linux_loader::loader::Error) -> MachineError {
    MachineError::Config {
        what: format!("{} cannot be loaded: {error}", kernel.display()),
        help: "It must be an x86-64 bzImage or vmlinux, and the guest have memory for it".into(),
    }
}

/// Its address and length.
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
