use retrovisor_guest::{Gpa, VcpuRegisters};

use crate::{Kernel, pages::Pages, paging::AddressSpace};

/// The page tables that the vCPUs use at one instant. They show which kernel runs: memory can contain two, because a
/// reset leaves the old one in place until it is overwritten.
pub(crate) struct Roots(Vec<Root>);

/// The page tables of one vCPU. Under page-table isolation a root with bit 12 set is the user's half of a pair: the
/// other half is the kernel's.
struct Root([AddressSpace; 2]);

/// The flag in RFLAGS that lets interrupts in.
const INTERRUPTS: u64 = 1 << 9;

impl Roots {
    /// The roots of the vCPUs in long mode, without those that are parked unless all are.
    pub(crate) fn of(vcpus: &[VcpuRegisters]) -> Self {
        let running = vcpus.iter().filter(|vcpu| !is_parked(vcpu)).filter_map(Root::of).collect();
        let roots = Self(running);
        if roots.0.is_empty() { Self(vcpus.iter().filter_map(Root::of).collect()) } else { roots }
    }

    /// Each tree once, in the order of the vCPUs.
    pub(crate) fn spaces(&self) -> Vec<AddressSpace> {
        let mut spaces = Vec::new();
        for space in self.0.iter().flat_map(|root| root.0) {
            if !spaces.contains(&space) {
                spaces.push(space);
            }
        }
        spaces
    }

    /// Whether one of the vCPUs runs in a kernel.
    pub(crate) fn lead_to(&self, kernel: &Kernel, pages: &Pages) -> bool {
        self.0.iter().any(|root| root.leads_to(kernel, pages))
    }
}

impl Root {
    fn of(vcpu: &VcpuRegisters) -> Option<Self> {
        let space = AddressSpace::of(vcpu)?;
        Some(Self([space, AddressSpace { root: Gpa(space.root.0 & !0x1000), ..space }]))
    }

    fn leads_to(&self, kernel: &Kernel, pages: &Pages) -> bool {
        self.0.iter().any(|space| kernel.is_mapped_by(*space, pages))
    }
}

/// The registers of the vCPUs that run this kernel. The others (in firmware, a boot loader, a nested guest or another
/// kernel) get the registers of a reset, so that no rule applies to them.
pub(crate) fn of_kernel(vcpus: &[VcpuRegisters], kernel: &Kernel, pages: &Pages) -> Vec<VcpuRegisters> {
    let own = |vcpu: &&VcpuRegisters| Root::of(vcpu).is_some_and(|root| root.leads_to(kernel, pages));
    vcpus.iter().map(|vcpu| Some(vcpu).filter(own).cloned().unwrap_or_default()).collect()
}

/// Whether a vCPU is halted with interrupts disabled. A kernel that starts another one (kexec) or panics stops the
/// other vCPUs in this way, in its own page tables.
fn is_parked(vcpu: &VcpuRegisters) -> bool {
    vcpu.halted && vcpu.rflags & INTERRUPTS == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_vcpu_does_not_count_unless_all_are() {
        let long = |root: u64, halted: bool, rflags: u64| VcpuRegisters {
            cr0: 1 << 31,
            efer: 1 << 10,
            cr3: root,
            halted,
            rflags,
            ..VcpuRegisters::default()
        };
        let roots = |vcpus: &[VcpuRegisters]| -> Vec<u64> {
            Roots::of(vcpus).spaces().iter().map(|space| space.root.0).collect()
        };
        let (real_mode, parked, idle) =
            (VcpuRegisters::default(), long(0x3000, true, 0), long(0x4000, true, INTERRUPTS));
        assert_eq!(roots(&[real_mode.clone(), parked.clone(), idle]), [0x4000]);
        assert_eq!(roots(&[long(0x5000, false, 0), parked.clone()]), [0x5000, 0x4000]);
        assert_eq!(roots(&[real_mode.clone(), parked]), [0x3000, 0x2000]);
        assert_eq!(roots(&[real_mode]), [0; 0]);
    }
}
