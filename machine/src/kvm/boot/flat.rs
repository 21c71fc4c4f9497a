use kvm_bindings::kvm_regs;
use retrovisor_guest::{Gpa, MachineError, MemoryLayout};

use super::{Entry, Mode, long_mode};
use crate::ram::Ram;

const FIRST_MIB: u64 = 1 << 20;

pub(super) fn load(ram: &Ram, layout: &MemoryLayout, image: &[u8], at: Gpa) -> Result<Entry, MachineError> {
    if at.0 < FIRST_MIB || at.offset_in_page() != 0 || image.is_empty() {
        return Err(MachineError::Config {
            what: format!("{} bytes of code at {at} are not usable", image.len()),
            help: "Code starts page-aligned, from 1 MiB on".into(),
        });
    }
    ram.write(at, image)?;
    let regs = kvm_regs { rip: at.0, rflags: 2, rsi: long_mode::end(layout), ..kvm_regs::default() };
    Ok(Entry { regs, mode: Mode::Long, all: true })
}
