use retrovisor_guest::{Gpa, MemoryView};

use crate::{
    Error, Kernel,
    linux::{
        dispatch,
        syscalls::{self, DispatchCode},
    },
    pages::Pages,
    reader::Reader,
};

/// The places that determine the target of one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyscallSites {
    /// The call's number.
    pub number: u32,
    /// The entry of `sys_call_table`: 8 bytes that hold the target. Kernels with `dispatch` use it only for tracing.
    pub table_entry: Site,
    /// The target in the table's entry.
    pub target: u64,
    /// The symbol there.
    pub symbol: Option<String>,
    /// The call or jump in `x64_sys_call` that dispatches the call; `None` in kernels that use the table.
    pub dispatch: Option<CallSite>,
}

/// A place in kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Kernel-virtual address.
    pub virt: u64,
    /// Guest-physical address.
    pub gpa: Gpa,
}

/// A direct call or jump with a 32-bit displacement in its last four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSite {
    /// Kernel-virtual address of the instruction.
    pub virt: u64,
    /// Guest-physical address of the instruction's first byte.
    pub gpa: Gpa,
    /// Guest-physical address of the displacement, which may be in another frame than the first byte.
    pub displacement_gpa: Gpa,
    /// Bytes of the instruction.
    pub length: usize,
    /// The address of its target.
    pub target: u64,
    /// Whether the displacement is within one page, so that one write changes it.
    pub within_page: bool,
}

impl CallSite {
    /// The displacement for another target; `None` when that is too far away.
    #[must_use]
    pub fn displacement_to(&self, target: u64) -> Option<i32> {
        let next = self.virt.wrapping_add(self.length as u64);
        i32::try_from(target.wrapping_sub(next).cast_signed()).ok()
    }
}

impl Kernel {
    /// The places at which a system call can be redirected, for inspection and for fault injection.
    pub fn syscall_sites(&self, view: &dyn MemoryView, number: u32) -> Result<SyscallSites, Error> {
        let pages = Pages::new(view);
        let reader = Reader::new(&pages, self.address_space());
        let table_at =
            self.symbol("sys_call_table").ok_or_else(|| Error::NoSymbol("sys_call_table".into()))?;
        let table = syscalls::table(self, &reader).ok_or(Error::Unmapped { virt: table_at })?;
        let target = *table.get(number as usize).ok_or(Error::NoSyscall(number))?;
        let site = |virt: u64| {
            let gpa = reader.translate(virt).ok_or(Error::Unmapped { virt })?;
            Ok::<_, Error>(Site { virt, gpa })
        };
        let code = DispatchCode::read(self, &reader);
        let exit = code.and_then(|code| Some((code.virt, dispatch::follow(&code.bytes, code.virt, number)?)));
        let dispatch = exit.map(|(virt, exit)| {
            let site_virt = virt + exit.at as u64;
            let displacement = site_virt + exit.length as u64 - 4;
            Ok::<_, Error>(CallSite {
                virt: site_virt,
                gpa: site(site_virt)?.gpa,
                displacement_gpa: site(displacement)?.gpa,
                length: exit.length,
                target: exit.target,
                within_page: displacement >> 12 == (displacement + 3) >> 12,
            })
        });
        Ok(SyscallSites {
            number,
            table_entry: site(table_at + u64::from(number) * 8)?,
            target,
            symbol: self.label(target),
            dispatch: dispatch.transpose()?,
        })
    }

    /// The number of a system call by its name (`getppid`).
    pub fn syscall_number(&self, view: &dyn MemoryView, name: &str) -> Result<u32, Error> {
        let symbol = format!("__x64_sys_{name}");
        let target = self.symbol(&symbol).ok_or(Error::NoSymbol(symbol))?;
        let pages = Pages::new(view);
        let table = syscalls::table(self, &Reader::new(&pages, self.address_space()));
        let number = table.and_then(|table| table.iter().position(|entry| *entry == target));
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| Error::NoSymbol(format!("sys_{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displacement_leads_to_its_target() {
        let at = 0xffff_ffff_8100_0000;
        let site = CallSite {
            virt: at,
            gpa: Gpa(0),
            displacement_gpa: Gpa(1),
            length: 5,
            target: at,
            within_page: true,
        };
        assert_eq!(site.displacement_to(at), Some(-5));
        assert_eq!(site.displacement_to(at + 0x105), Some(0x100));
        assert_eq!(site.displacement_to(0xffff_8880_0000_0000), None);
    }
}
