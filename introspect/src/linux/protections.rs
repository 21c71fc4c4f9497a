use retrovisor_guest::VcpuRegisters;

use super::code::Code;
use crate::{
    fact::{Violation, ViolationKind},
    paging::AddressSpace,
};

/// The protections that were enabled on each vCPU at the first observation: by index, CR0 and CR4.
pub(crate) type Controls = Vec<(u64, u64)>;

const CR0_WP: (u64, &str) = (1 << 16, "CR0.WP");
const CR4_BITS: [(u64, &str); 2] = [(1 << 20, "CR4.SMEP"), (1 << 21, "CR4.SMAP")];

/// Compares each vCPU's control registers with its known protections. New protections are added.
pub(crate) fn control_registers(vcpus: &[VcpuRegisters], known: &mut Controls) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, vcpu) in vcpus.iter().enumerate() {
        if kernel_space(vcpu).is_none() {
            continue;
        }
        if known.len() <= number {
            known.resize(number + 1, (0, 0));
        }
        let Some((cr0, cr4)) = known.get_mut(number) else { continue };
        let bits = [(CR0_WP, vcpu.cr0, *cr0)].into_iter().chain(CR4_BITS.map(|bit| (bit, vcpu.cr4, *cr4)));
        for ((bit, name), now, before) in bits {
            if before & bit != 0 && now & bit == 0 {
                violations.push(Violation {
                    kind: ViolationKind::ControlRegister,
                    object: format!("vCPU {number} {name}"),
                    symbol: None,
                    detail: "a protection of kernel memory was switched off".into(),
                    expected: "1".into(),
                    found: "0".into(),
                });
            }
        }
        *cr0 |= vcpu.cr0 & CR0_WP.0;
        *cr4 |= vcpu.cr4 & (CR4_BITS[0].0 | CR4_BITS[1].0);
    }
    violations
}

/// Checks the SYSCALL entry address, for drivers that can read it.
pub(crate) fn system_call_entry(code: &Code, vcpus: &[VcpuRegisters]) -> Vec<Violation> {
    let Some(entry) = code.probe.symbol("entry_SYSCALL_64") else { return Vec::new() };
    let redirected = |(number, vcpu): (usize, &VcpuRegisters)| {
        // Zero: a CPU that has not started yet.
        let lstar = vcpu.lstar.filter(|lstar| *lstar != 0 && *lstar != entry)?;
        kernel_space(vcpu)?;
        Some(Violation {
            kind: ViolationKind::Lstar,
            object: format!("vCPU {number} LSTAR"),
            symbol: Some("entry_SYSCALL_64".into()),
            detail: "system calls enter the kernel elsewhere".into(),
            expected: format!("{entry:#018x}"),
            found: code.describe(lstar),
        })
    };
    vcpus.iter().enumerate().filter_map(redirected).collect()
}

/// A vCPU's page tables, if the kernel's rules apply to it. They do not in firmware, at start-up or in system
/// management mode, where paging is off or another interrupt table is loaded, at a low address.
pub(crate) fn kernel_space(vcpu: &VcpuRegisters) -> Option<AddressSpace> {
    AddressSpace::of(vcpu).filter(|_| vcpu.idt.base.cast_signed() < 0)
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::DescriptorTable;

    use super::*;

    #[test]
    fn a_protection_is_missed_only_by_who_had_it() {
        let idt = DescriptorTable { base: 0xffff_fe00_0000_0000, limit: 4095 };
        let long =
            VcpuRegisters { cr0: 1 << 31 | 1 << 16, efer: 1 << 10, cr4: 1 << 20, idt, ..Default::default() };
        let mut known = Controls::new();
        assert!(control_registers(std::slice::from_ref(&long), &mut known).is_empty());
        let off = VcpuRegisters { cr0: 1 << 31, ..long.clone() };
        let found = control_registers(&[off.clone(), off], &mut known);
        assert_eq!(found.iter().map(|v| v.object.as_str()).collect::<Vec<_>>(), ["vCPU 0 CR0.WP"]);
        let real_mode = VcpuRegisters::default();
        assert!(control_registers(&[real_mode, long], &mut known).is_empty());
    }
}
