use std::sync::OnceLock;

use kvm_ioctls::{Kvm, VcpuFd};
use retrovisor_guest::MachineError;

use super::msrs::MsrList;
use super::tsc;

/// The parts of a vCPU's state on this host, and in this machine.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(super) msrs: MsrList,
    pub(super) xsave_bytes: usize,
    /// Whether the time-stamp counter can be changed: a KVM that interprets guests may leave it to the hardware.
    pub(super) moves_tsc: bool,
    /// Number of vCPUs of the machine.
    pub(super) vcpus: u32,
    /// Ticks of the time-stamp counter in a millisecond.
    pub(crate) tsc_khz: u32,
}

impl Shape {
    /// Queries KVM; constant values only once. `xsave_bytes`: as KVM reports.
    pub(crate) fn find(
        kvm: &Kvm,
        vcpu: &VcpuFd,
        xsave_bytes: usize,
        vcpus: u32,
    ) -> Result<Self, MachineError> {
        static ALWAYS: OnceLock<(MsrList, bool)> = OnceLock::new();
        let (msrs, moves_tsc) = if let Some(known) = ALWAYS.get() {
            known.clone()
        } else {
            let found = (MsrList::find(kvm, vcpu)?, tsc::can_move(vcpu));
            ALWAYS.get_or_init(|| found).clone()
        };
        Ok(Self { msrs, xsave_bytes, moves_tsc, vcpus, tsc_khz: vcpu.get_tsc_khz().unwrap_or(0) })
    }

    /// Whether the guest's time-stamp counter can be stopped with the guest.
    pub(crate) fn moves_tsc(&self) -> bool {
        self.moves_tsc
    }
}
