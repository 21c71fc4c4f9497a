use std::ops::RangeInclusive;
use std::os::fd::AsRawFd as _;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use retrovisor_guest::MachineError;

const TSC: u32 = 0x10;

mod ioctl {
    use kvm_bindings::kvm_device_attr;

    nix::ioctl_write_ptr!(set_attribute, 0xae, 0xe1, kvm_device_attr);
    nix::ioctl_write_ptr!(get_attribute, 0xae, 0xe2, kvm_device_attr);
}

// Numbers from include/uapi/linux/kvm.h: KVM_SET_DEVICE_ATTR and KVM_GET_DEVICE_ATTR carry 24 bytes.
const _: () = assert!(size_of::<kvm_device_attr>() == 24);

/// The offset of a vCPU's time-stamp counter from the host's, as far as it is known.
///
/// The counter is changed by that offset, not by writing the MSR: when a written value is within a second of the
/// expected one, KVM assumes an attempt to synchronise the counters of several vCPUs, and does not change the counter.
/// Most rollbacks are within a second. All vCPUs of a machine get the same change, so that their counters stay equal.
#[derive(Debug, Default)]
pub(super) struct Tsc {
    offset: Option<u64>,
}

impl Tsc {
    /// The offset of a vCPU whose counter was `counter` when the host's was `host`.
    pub(super) fn offset(
        &mut self,
        vcpu: &VcpuFd,
        counter: u64,
        host: RangeInclusive<u64>,
    ) -> Result<u64, MachineError> {
        // A guest may write its counter.
        let is_right = |offset: &u64| host.contains(&counter.wrapping_sub(*offset));
        if let Some(offset) = self.offset.filter(is_right) {
            return Ok(offset);
        }
        let offset = get(vcpu)?;
        self.offset = Some(offset);
        Ok(offset)
    }

    /// Changes the counter.
    pub(super) fn set(&mut self, vcpu: &VcpuFd, offset: u64) -> Result<(), MachineError> {
        if self.offset != Some(offset) {
            self.offset = None;
            set(vcpu, offset)?;
            self.offset = Some(offset);
        }
        Ok(())
    }
}

/// The host's counter.
pub(crate) fn host() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets processes use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Tests whether it works.
pub(super) fn can_move(vcpu: &VcpuFd) -> bool {
    const FAR: u64 = 1 << 44;
    let counter = || -> Option<u64> {
        let entry = kvm_msr_entry { index: TSC, ..kvm_msr_entry::default() };
        let mut entries = Msrs::from_entries(&[entry]).ok()?;
        vcpu.get_msrs(&mut entries).ok()?;
        Some(entries.as_slice().first()?.data)
    };
    let moved = || -> Option<bool> {
        let (before, offset) = (counter()?, get(vcpu).ok()?);
        set(vcpu, offset.wrapping_add(FAR)).ok()?;
        let after = counter()?;
        set(vcpu, offset).ok()?;
        Some(after.wrapping_sub(before) >= FAR)
    };
    moved().unwrap_or(false)
}

fn get(vcpu: &VcpuFd) -> Result<u64, MachineError> {
    let mut offset = 0_u64;
    let attribute = attribute(&raw mut offset);
    // SAFETY: the attribute is 8 bytes long, and KVM writes it to `offset`, which outlives the call.
    unsafe { ioctl::get_attribute(vcpu.as_raw_fd(), &raw const attribute) }.map_err(failed)?;
    // SAFETY: `offset` is alive; KVM wrote it by its address.
    Ok(unsafe { (&raw const offset).read_volatile() })
}

fn set(vcpu: &VcpuFd, offset: u64) -> Result<(), MachineError> {
    let mut offset = offset;
    let attribute = attribute(&raw mut offset);
    // SAFETY: KVM reads 8 bytes from `offset`, which outlives the call.
    unsafe { ioctl::set_attribute(vcpu.as_raw_fd(), &raw const attribute) }.map_err(failed)?;
    Ok(())
}

fn attribute(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: offset as u64,
    }
}

fn failed(errno: Errno) -> MachineError {
    MachineError::Driver { doing: "moving the time-stamp counter".into(), message: errno.desc().into() }
}
