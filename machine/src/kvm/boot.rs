use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use retrovisor_guest::{Gfn, Gpa, MachineError, MemoryLayout, PAGE_SIZE, Page, PageContent, ZERO_PAGE};

use crate::ram::Ram;

/// What the vCPUs run first.
#[derive(Clone, Debug)]
pub enum Boot {
    /// Code that needs no firmware: all vCPUs start at its first byte in 64-bit mode, memory is mapped one to one,
    /// RDI holds the vCPU's number, RSI the end of memory. The first megabyte up to `at` is the page tables'.
    Flat {
        /// The code.
        image: Vec<u8>,
        /// Where it lies: page-aligned, behind the page tables (from 1 MiB on).
        at: Gpa,
    },
}

/// Page tables lie from here on: one of level 4, one of level 3, one of level 2 for each GiB.
const TABLES: u64 = 0x1000;
/// Most memory that they can map.
const MAPPED_GIB_MAX: u64 = 64;
/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, and a page of 2 MiB.
const LARGE: u64 = 0b1000_0011;
const FIRST_MIB: u64 = 1 << 20;

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

impl Boot {
    /// Puts the code and what it needs into memory.
    pub(super) fn load(&self, ram: &Ram, layout: &MemoryLayout) -> Result<(), MachineError> {
        let Self::Flat { image, at } = self;
        let config =
            |what: String| MachineError::Config { what, help: "Choose another place or size".into() };
        if at.0 < FIRST_MIB || at.offset_in_page() != 0 || image.is_empty() {
            return Err(config(format!("code at {at} is not usable: it starts page-aligned, from 1 MiB on")));
        }
        let gib = end(layout).div_ceil(1 << 30);
        if gib > MAPPED_GIB_MAX {
            return Err(config(format!("flat code reaches {MAPPED_GIB_MAX} GiB of memory, not {gib}")));
        }
        let (level_3, level_2) = (TABLES + 0x1000, TABLES + 0x2000);
        table(ram, TABLES, |at| if at == 0 { level_3 | TABLE } else { 0 })?;
        table(ram, level_3, |at| if at < gib { (level_2 + at * 0x1000) | TABLE } else { 0 })?;
        for part in 0..gib {
            table(ram, level_2 + part * 0x1000, |at| (part << 30 | at << 21) | LARGE)?;
        }
        for (index, bytes) in (0..).zip(image.chunks(PAGE_SIZE)) {
            let mut page = ZERO_PAGE;
            page[..bytes.len()].copy_from_slice(bytes);
            ram.write_page(Gfn(at.gfn().0 + index), PageContent::Data(&page))?;
        }
        Ok(())
    }

    /// A vCPU's registers at its first instruction; `sregs` are those of a vCPU after its creation.
    pub(super) fn registers(&self, vcpu: u32, layout: &MemoryLayout, sregs: &mut kvm_sregs) -> kvm_regs {
        let Self::Flat { at, .. } = self;
        let segment = |selector, type_, l, db, s| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl: 0,
            db,
            s,
            l,
            g: 1,
            ..kvm_segment::default()
        };
        sregs.cs = segment(8, 11, 1, 0, 1);
        let data = segment(16, 3, 0, 1, 1);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        sregs.cr3 = TABLES;
        sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        sregs.efer = EFER_LME | EFER_LMA;
        kvm_regs { rip: at.0, rflags: 2, rdi: u64::from(vcpu), rsi: end(layout), ..kvm_regs::default() }
    }
}

fn end(layout: &MemoryLayout) -> u64 {
    layout.slots().last().map_or(0, |slot| slot.end().0)
}

fn table(ram: &Ram, at: u64, entry: impl Fn(u64) -> u64) -> Result<(), MachineError> {
    let mut page: Page = ZERO_PAGE;
    for (index, bytes) in (0..).zip(page.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&entry(index).to_le_bytes());
    }
    Ok(ram.write_page(Gpa(at).gfn(), PageContent::Data(&page))?)
}
