//! The notes of an ELF core: registers as Linux and as QEMU write them, and the guest kernel's VMCOREINFO.

use retrovisor_guest::{DescriptorTable, Page, VcpuRegisters};

/// Notes named `CORE` of this type hold registers as Linux saves them.
const NT_PRSTATUS: u32 = 1;
/// Bytes of `struct elf_prstatus` on x86-64; the registers are at 112.
const PRSTATUS_BYTES: usize = 336;
const PRSTATUS_REGISTERS: usize = 112;
/// Bytes of QEMU's `QEMUCPUState`.
const QEMU_BYTES: usize = 440;
/// Longest VMCOREINFO: Linux keeps it in one page.
const VMCOREINFO_BYTES_MAX: usize = 4096;

/// A note: name, type, contents.
pub(super) struct Note<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: u32,
    pub(super) bytes: &'a [u8],
}

/// Adds a note.
fn push(notes: &mut Vec<u8>, name: &[u8], kind: u32, bytes: &[u8]) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    notes.extend(length(name.len() + 1));
    notes.extend(length(bytes.len()));
    notes.extend(kind.to_le_bytes());
    notes.extend(name);
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend(bytes);
    notes.resize(notes.len().next_multiple_of(4), 0);
}

/// All notes of a core: for each vCPU one as Linux has it, then one as QEMU has it, then VMCOREINFO.
pub(super) fn encode(vcpus: &[VcpuRegisters], vmcoreinfo: Option<&[u8]>) -> Vec<u8> {
    let mut notes = Vec::new();
    for (at, vcpu) in vcpus.iter().enumerate() {
        push(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(at, vcpu));
    }
    for vcpu in vcpus {
        push(&mut notes, b"QEMU", 0, &qemu(vcpu));
    }
    if let Some(info) = vmcoreinfo {
        push(&mut notes, b"VMCOREINFO", 0, info);
    }
    notes
}

/// Bytes that [`encode`] needs at most.
pub(super) fn bytes_max(vcpus: usize) -> u64 {
    (vcpus * (PRSTATUS_BYTES + QEMU_BYTES + 64) + VMCOREINFO_BYTES_MAX + 64) as u64
}

/// Reads notes up to the first that is cut off.
pub(super) fn decode(mut bytes: &[u8]) -> Vec<Note<'_>> {
    let mut notes = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(12) {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_length, length) = (word(0) as usize, word(4) as usize);
        let Some((name, rest)) = rest.split_at_checked(name_length.next_multiple_of(4)) else { break };
        let padded = length.next_multiple_of(4).min(rest.len());
        let (contents, rest) = rest.split_at(padded);
        let Some(contents) = contents.get(..length) else { break };
        let name = name[..name_length].strip_suffix(&[0]).unwrap_or(&name[..name_length]);
        notes.push(Note { name, kind: word(8), bytes: contents });
        bytes = rest;
    }
    notes
}

/// Selectors are not recorded: these are Linux's own for the privilege level.
fn selectors(vcpu: &VcpuRegisters) -> (u64, u64) {
    if vcpu.privilege == 0 { (0x10, 0x18) } else { (0x33, 0x2b) }
}

fn prstatus(at: usize, vcpu: &VcpuRegisters) -> [u8; PRSTATUS_BYTES] {
    let mut bytes = [0; PRSTATUS_BYTES];
    let pid = u32::try_from(at + 1).unwrap_or(u32::MAX);
    bytes[32..36].copy_from_slice(&pid.to_le_bytes());
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] = vcpu.general;
    let (cs, ss) = selectors(vcpu);
    let registers = [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        rax,
        vcpu.rip,
        cs,
        vcpu.rflags,
        rsp,
        ss,
        vcpu.fs_base,
        vcpu.gs_base,
        0,
        0,
        0,
        0,
    ];
    for (place, register) in bytes[PRSTATUS_REGISTERS..].chunks_exact_mut(8).zip(registers) {
        place.copy_from_slice(&register.to_le_bytes());
    }
    bytes
}

fn qemu(vcpu: &VcpuRegisters) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(QEMU_BYTES);
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(440_u32.to_le_bytes());
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, high @ ..] = vcpu.general;
    for register in [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp].into_iter().chain(high) {
        bytes.extend(register.to_le_bytes());
    }
    bytes.extend(vcpu.rip.to_le_bytes());
    bytes.extend(vcpu.rflags.to_le_bytes());
    let (cs, ss) = selectors(vcpu);
    let mut segment = |selector: u64, limit: u32, base: u64| {
        bytes.extend(u32::try_from(selector).unwrap_or(0).to_le_bytes());
        bytes.extend(limit.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(base.to_le_bytes());
    };
    // cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt.
    segment(cs, u32::MAX, 0);
    segment(0, u32::MAX, 0);
    segment(0, u32::MAX, 0);
    segment(0, u32::MAX, vcpu.fs_base);
    segment(0, u32::MAX, vcpu.gs_base);
    segment(ss, u32::MAX, 0);
    segment(0, 0, 0);
    segment(0, 0, 0);
    segment(0, vcpu.gdt.limit.into(), vcpu.gdt.base);
    segment(0, vcpu.idt.limit.into(), vcpu.idt.base);
    for control in [vcpu.cr0, 0, vcpu.cr2, vcpu.cr3, vcpu.cr4] {
        bytes.extend(control.to_le_bytes());
    }
    bytes.extend(vcpu.kernel_gs_base.unwrap_or(0).to_le_bytes());
    bytes
}

/// Registers from a note as QEMU writes it.
pub(super) fn from_qemu(bytes: &[u8]) -> Option<VcpuRegisters> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if bytes.get(..4)? != 1_u32.to_le_bytes() {
        return None;
    }
    let mut general = [0; 16];
    for (at, register) in general.iter_mut().enumerate() {
        // QEMU has the stack pointer before the frame pointer.
        let place = match at {
            6 => 7,
            7 => 6,
            other => other,
        };
        *register = word(8 + place * 8)?;
    }
    let segment = |number: usize| 152 + number * 24;
    let table = |number: usize| {
        let limit = bytes.get(segment(number) + 4..segment(number) + 6)?;
        let limit = u16::from_le_bytes(limit.try_into().ok()?);
        Some(DescriptorTable { base: word(segment(number) + 16)?, limit })
    };
    let (cs, control) = (word(segment(0))? & 3, segment(10));
    Some(VcpuRegisters {
        general,
        rip: word(136)?,
        rflags: word(144)?,
        cr0: word(control)?,
        cr2: word(control + 16)?,
        cr3: word(control + 24)?,
        cr4: word(control + 32)?,
        // Not in the note. A 64-bit guest with paging has long mode enabled.
        efer: if word(control)? >> 31 == 1 { 0xd01 } else { 0 },
        fs_base: word(segment(3) + 16)?,
        gs_base: word(segment(4) + 16)?,
        privilege: u8::try_from(cs).unwrap_or(0),
        halted: false,
        idt: table(9)?,
        gdt: table(8)?,
        kernel_gs_base: word(control + 40),
        lstar: None,
    })
}

/// Registers from a note as Linux writes it: no control registers.
pub(super) fn from_prstatus(bytes: &[u8]) -> Option<VcpuRegisters> {
    let word = |at: usize| {
        let at = PRSTATUS_REGISTERS + at * 8;
        Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let order = [10, 5, 11, 12, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0];
    let mut general = [0; 16];
    for (register, place) in general.iter_mut().zip(order) {
        *register = word(place)?;
    }
    Some(VcpuRegisters {
        general,
        rip: word(16)?,
        rflags: word(18)?,
        fs_base: word(21)?,
        gs_base: word(22)?,
        privilege: u8::try_from(word(17)? & 3).unwrap_or(0),
        ..VcpuRegisters::default()
    })
}

/// The guest kernel's VMCOREINFO, if this page contains it.
pub(super) fn vmcoreinfo(page: &Page) -> Option<&[u8]> {
    let has = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|part| part == word);
    if !page.starts_with(b"OSRELEASE=") {
        return None;
    }
    let end = page.iter().position(|byte| *byte == 0).unwrap_or(page.len());
    let text = &page[..end];
    let printable = text.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n'));
    (printable && has(text, b"\nPAGESIZE=") && has(text, b"\nSYMBOL(")).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registers() -> VcpuRegisters {
        let mut general = [0; 16];
        (0..16).for_each(|at| general[at] = 0x100 + at as u64);
        VcpuRegisters {
            general,
            rip: 1,
            rflags: 2,
            cr0: 1 << 31,
            cr2: 4,
            cr3: 5,
            cr4: 6,
            efer: 0xd01,
            fs_base: 7,
            gs_base: 8,
            privilege: 3,
            halted: false,
            idt: DescriptorTable { base: 9, limit: 10 },
            gdt: DescriptorTable { base: 11, limit: 12 },
            kernel_gs_base: Some(13),
            lstar: None,
        }
    }

    #[test]
    fn registers_come_back_from_notes() {
        let vcpu = registers();
        let bytes = encode(std::slice::from_ref(&vcpu), Some(b"OSRELEASE=6"));
        assert!(bytes.len() as u64 <= bytes_max(1));
        let notes = decode(&bytes);
        assert_eq!(
            notes.iter().map(|note| (note.name, note.bytes.len())).collect::<Vec<_>>(),
            [(&b"CORE"[..], PRSTATUS_BYTES), (b"QEMU", QEMU_BYTES), (b"VMCOREINFO", 11)]
        );
        assert_eq!(from_qemu(notes[1].bytes), Some(vcpu.clone()));
        let linux = from_prstatus(notes[0].bytes).unwrap();
        assert_eq!((linux.general, linux.rip, linux.gs_base, linux.privilege), (vcpu.general, 1, 8, 3));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>, mut page in prop::collection::vec(any::<u8>(), 4096)) {
            for note in decode(&bytes) {
                let _ = (note.kind, from_qemu(note.bytes), from_prstatus(note.bytes));
            }
            let _ = (from_qemu(&bytes), from_prstatus(&bytes));
            page[..10].copy_from_slice(b"OSRELEASE=");
            let _ = vmcoreinfo(page.first_chunk().unwrap());
        }
    }
}
