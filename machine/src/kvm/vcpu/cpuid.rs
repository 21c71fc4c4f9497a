use std::sync::OnceLock;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use retrovisor_guest::MachineError;

use crate::kvm::host::failed;

/// The TSC-deadline timer. KVM supports it, but the monitor must offer it. A guest without it calibrates the local
/// APIC's timer, and may calibrate it wrongly if it is paused meanwhile.
const TSC_DEADLINE: u32 = 1 << 24;
/// The leaf in which KVM describes its paravirtual features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Of these, the features with requests that are not part of any state that KVM returns: pages for which the guest was
/// asked to wait (bits 4, 10 and 14), and the kick for a vCPU that is about to halt for a lock (bit 7). After a
/// rollback a guest could wait for either for ever.
const NOT_IN_A_STATE: u32 = 1 << 4 | 1 << 7 | 1 << 10 | 1 << 14;
/// The hypervisor bit.
const HYPERVISOR: u32 = 1 << 31;

/// The CPUID that the host's processor and KVM offer. Read only once: it takes KVM a third of a millisecond.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, MachineError> {
    static ALWAYS: OnceLock<CpuId> = OnceLock::new();
    if let Some(known) = ALWAYS.get() {
        return Ok(known.clone());
    }
    let mut found =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("asking what the processor can do"))?;
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        found
            .as_mut_slice()
            .iter_mut()
            .filter(|entry| entry.function == 1)
            .for_each(|entry| entry.ecx |= TSC_DEADLINE);
    }
    let paravirtual = found.as_mut_slice().iter_mut().filter(|entry| entry.function == KVM_FEATURES);
    paravirtual.for_each(|entry| entry.eax &= !NOT_IN_A_STATE);
    Ok(ALWAYS.get_or_init(|| found).clone())
}

/// The same for one vCPU of several: with its number, and all as cores of one package.
pub(crate) fn of_vcpu(supported: &CpuId, number: u32, count: u32) -> CpuId {
    let mut own = supported.clone();
    // Bits of the number for the core.
    let core_bits = count.next_power_of_two().trailing_zeros();
    for entry in own.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | count << 16 | number << 24;
                entry.ecx |= HYPERVISOR;
            }
            // Caches: as many cores as there are vCPUs, each with caches of its own except the last level.
            4 => entry.eax = entry.eax & 0x3fff | (count.next_power_of_two() - 1) << 26,
            0xb | 0x1f => {
                entry.edx = number;
                match entry.index {
                    0 => (entry.eax, entry.ebx, entry.ecx) = (0, 1, 0x100),
                    1 => (entry.eax, entry.ebx, entry.ecx) = (core_bits, count, 0x201),
                    index => (entry.eax, entry.ebx, entry.ecx) = (0, 0, index),
                }
            }
            _ => {}
        }
    }
    own
}
