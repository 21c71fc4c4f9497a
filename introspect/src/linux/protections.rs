use retrovisor_guest::VcpuRegisters;

use crate::{
    fact::{Violation, ViolationKind},
    paging::AddressSpace,
    probe::Probe,
};

/// The protections that each vCPU had on when it was first seen with them: by index, CR0 and CR4.
pub(crate) type Controls = Vec<(u64, u64)>;

const CR0_WP: (u64, &str) = (1 << 16, "CR0.WP");
const CR4_BITS: [(u64, &str); 2] = [(1 << 20, "CR4.SMEP"), (1 << 21, "CR4.SMAP")];
const GATES: u64 = 256;
const GATE_BYTES: usize = 16;
const PRESENT: u8 = 0x80;

/// Compares each vCPU's control registers with the protections it had. New protections are learnt.
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

/// Checks where SYSCALL enters, for drivers that can tell.
pub(crate) fn system_call_entry(probe: &Probe, vcpus: &[VcpuRegisters]) -> Vec<Violation> {
    let Some(entry) = probe.symbol("entry_SYSCALL_64") else { return Vec::new() };
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
            found: told(probe, lstar),
        })
    };
    vcpus.iter().enumerate().filter_map(redirected).collect()
}

/// Checks that each vCPU uses the kernel's table of interrupt gates, and that each gate leads into its code.
pub(crate) fn interrupt_gates(probe: &Probe, vcpus: &[VcpuRegisters]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let Some(table) = probe.symbol("idt_table") else { return violations };
    let violation = |object: String, detail: &str, expected: String, found: String| Violation {
        kind: ViolationKind::IdtRedirected,
        object,
        symbol: Some("idt_table".into()),
        detail: detail.into(),
        expected,
        found,
    };
    for (number, vcpu) in vcpus.iter().enumerate() {
        let Some(space) = kernel_space(vcpu) else { continue };
        // The table is mapped a second time, read-only: it is its frame that counts.
        let used = space.translate(probe.reader.pages(), vcpu.idt.base);
        let own = probe.kernel.image_gpa(table);
        if used.is_some() && used != own {
            let detail = "the processor uses another table of interrupt gates than the kernel's";
            let found = format!("{:#018x}", vcpu.idt.base);
            violations.push(violation(format!("vCPU {number} IDT"), detail, format!("{table:#018x}"), found));
        }
    }
    let mut gates = vec![0; usize::try_from(GATES).unwrap_or(0) * GATE_BYTES];
    if probe.reader.read(table, &mut gates).is_none() {
        return violations;
    }
    let text = probe.kernel.text();
    // Exceptions that no processor raises keep the gates of early boot; their code is freed with the rest of it.
    let early =
        probe.symbol("early_idt_handler_array").and_then(|at| Some(at..at + probe.kernel.place(at)?.size));
    for (number, gate) in gates.as_chunks::<GATE_BYTES>().0.iter().enumerate() {
        let handler = handler_of(gate);
        let lawful = text.contains(&handler) || early.as_ref().is_some_and(|early| early.contains(&handler));
        if gate[5] & PRESENT != 0 && !lawful {
            let detail = "an interrupt gate leads out of the kernel's code";
            violations.push(violation(
                format!("gate {number}"),
                detail,
                "kernel text".into(),
                told(probe, handler),
            ));
        }
    }
    violations
}

/// A vCPU's page tables, if the kernel's rules hold for it: not in firmware, start-up or management mode, where
/// paging is off or the interrupt table is somebody else's, at a low address.
fn kernel_space(vcpu: &VcpuRegisters) -> Option<AddressSpace> {
    AddressSpace::of(vcpu).filter(|_| vcpu.idt.base.cast_signed() < 0)
}

/// The address in a gate: its bytes lie apart.
fn handler_of(gate: &[u8; GATE_BYTES]) -> u64 {
    let bytes = [gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]];
    u64::from_le_bytes(bytes)
}

/// An address with its symbol, if it has one.
pub(crate) fn told(probe: &Probe, address: u64) -> String {
    match probe.kernel.label(address) {
        Some(label) => format!("{address:#018x} {label}"),
        None => format!("{address:#018x}"),
    }
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

    #[test]
    fn a_gate_is_put_together() {
        let mut gate = [0; 16];
        (gate[0], gate[1], gate[6], gate[11]) = (0x90, 0x09, 0x20, 0xff);
        assert_eq!(handler_of(&gate), 0xff00_0000_0020_0990);
    }
}
