use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use retrovisor_guest::{Gpa, MachineError, MemoryLayout, PAGE_SIZE, Page, PageContent, ZERO_PAGE};

use crate::ram::Ram;

/// The descriptor table.
const GDT: u64 = 0x1000;
/// Page tables begin here: one of level 4, one of level 3, one of level 2 for each GiB.
const TABLES: u64 = 0x1_0000;
/// Most memory that they can map, below the first byte that others use.
const MAPPED_GIB_MAX: u64 = 64;
/// What is always mapped: interrupt controllers and devices answer below 4 GiB.
const MAPPED_GIB_MIN: u64 = 4;
/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, and a page of 2 MiB.
const LARGE: u64 = 0b1000_0011;

/// The places of the segments that Linux expects: code, data.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// First address past all memory.
pub(super) fn end(layout: &MemoryLayout) -> u64 {
    layout.slots().last().map_or(0, |slot| slot.end().0)
}

/// Maps all memory and the devices below 4 GiB one to one, and describes flat segments.
pub(super) fn write_tables(ram: &Ram, layout: &MemoryLayout) -> Result<(), MachineError> {
    let gib = end(layout).div_ceil(1 << 30);
    if gib > MAPPED_GIB_MAX {
        return Err(MachineError::Config {
            what: format!("a microVM has up to {MAPPED_GIB_MAX} GiB of memory, not {gib}"),
            help: "Ask for less memory".into(),
        });
    }
    let gib = gib.max(MAPPED_GIB_MIN);
    let (level_3, level_2) = (TABLES + 0x1000, TABLES + 0x2000);
    table(ram, TABLES, |at| if at == 0 { level_3 | TABLE } else { 0 })?;
    table(ram, level_3, |at| if at < gib { (level_2 + at * 0x1000) | TABLE } else { 0 })?;
    for part in 0..gib {
        table(ram, level_2 + part * 0x1000, |at| (part << 30 | at << 21) | LARGE)?;
    }
    table(ram, GDT, |at| match u16::try_from(at * 8) {
        Ok(CODE) => 0x00af_9b00_0000_ffff,
        Ok(DATA) => 0x00cf_9300_0000_ffff,
        _ => 0,
    })
}

/// 64-bit mode with paging on.
pub(super) fn set_registers(sregs: &mut kvm_sregs) {
    set_segments(sregs, true);
    sregs.gdt = kvm_dtable { base: GDT, limit: DATA + 7, ..kvm_dtable::default() };
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = TABLES;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// 32-bit protected mode, without paging.
pub(super) fn set_protected(sregs: &mut kvm_sregs) {
    set_segments(sregs, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    (sregs.cr4, sregs.efer) = (0, 0);
}

/// Flat ones.
fn set_segments(sregs: &mut kvm_sregs, is_long: bool) {
    let segment = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = segment(CODE, 11, u8::from(is_long), u8::from(!is_long));
    let data = segment(DATA, 3, 0, 1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy task state segment of 32 or 64 bits; without limit, as it is not used.
    sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, ..kvm_segment::default() };
}

fn table(ram: &Ram, at: u64, entry: impl Fn(u64) -> u64) -> Result<(), MachineError> {
    let mut page: Page = ZERO_PAGE;
    debug_assert_eq!(page.len(), PAGE_SIZE);
    for (index, bytes) in (0..).zip(page.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&entry(index).to_le_bytes());
    }
    Ok(ram.write_page(Gpa(at).gfn(), PageContent::Data(&page))?)
}
