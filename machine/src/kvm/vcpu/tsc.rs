use std::os::fd::AsRawFd as _;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use retrovisor_guest::MachineError;

mod ioctl {
    use kvm_bindings::kvm_device_attr;

    nix::ioctl_write_ptr!(set_attribute, 0xae, 0xe1, kvm_device_attr);
    nix::ioctl_write_ptr!(get_attribute, 0xae, 0xe2, kvm_device_attr);
}

// Numbers from include/uapi/linux/kvm.h: KVM_SET_DEVICE_ATTR and KVM_GET_DEVICE_ATTR carry 24 bytes.
const _: () = assert!(size_of::<kvm_device_attr>() == 24);

/// Moves the vCPU's time-stamp counter by `delta` ticks.
///
/// Not by writing the MSR: KVM takes a value within a second of what it expects for an attempt to synchronise the
/// counters of several vCPUs, and leaves the counter where it was. A rollback mostly *is* within a second.
pub(super) fn shift(vcpu: &VcpuFd, delta: u64) -> Result<(), MachineError> {
    let mut offset = 0_u64;
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: (&raw mut offset) as u64,
    };
    let failed = |errno: Errno| MachineError::Driver {
        doing: "moving the time-stamp counter".into(),
        message: errno.desc().into(),
    };
    // SAFETY: the attribute is 8 bytes long, and KVM writes it to `offset`, which outlives the call.
    unsafe { ioctl::get_attribute(vcpu.as_raw_fd(), &raw const attribute) }.map_err(failed)?;
    // SAFETY: `offset` is alive and nobody else holds it.
    unsafe { (&raw mut offset).write_volatile((&raw const offset).read_volatile().wrapping_add(delta)) };
    // SAFETY: KVM reads 8 bytes from `offset`, which outlives the call.
    unsafe { ioctl::set_attribute(vcpu.as_raw_fd(), &raw const attribute) }.map_err(failed)?;
    Ok(())
}
