use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use retrovisor_guest::MachineError;

use crate::kvm::host::failed;

/// Deadline of the local timer: set after the time-stamp counter, which it is compared with.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// Writes to these are requests of the guest: to have its boot time written into memory (the old number and the new
/// one), and to be notified of a page that is available. Their effects are in memory, which is restored separately and
/// must not be written again.
const NOT_STATE: [u32; 3] = [0x11, 0x4b56_4d00, 0x4b56_4d03];

/// The model-specific registers that make up a vCPU's state on this host.
#[derive(Clone, Debug)]
pub(crate) struct MsrList(Vec<u32>);

impl MsrList {
    /// Those that KVM lists and this vCPU supports.
    pub(crate) fn find(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, MachineError> {
        let listed = kvm.get_msr_index_list().map_err(failed("asking which MSRs there are"))?;
        let mut list: Vec<u32> =
            listed.as_slice().iter().copied().filter(|index| !NOT_STATE.contains(index)).collect();
        // Stable, so that only the deadline moves to the end.
        list.sort_by_key(|index| *index == TSC_DEADLINE);
        let mut list = Self(list);
        loop {
            let mut entries = list.entries()?;
            let read = vcpu.get_msrs(&mut entries).map_err(failed("reading MSRs"))?;
            if read >= list.0.len() {
                return Ok(list);
            }
            // KVM stops at the first that it cannot read.
            list.0.remove(read);
        }
    }

    /// Their values.
    pub(super) fn read(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, MachineError> {
        let mut entries = self.entries()?;
        let read = vcpu.get_msrs(&mut entries).map_err(failed("reading MSRs"))?;
        if read < self.0.len() {
            return Err(refused("reading", self.0[read]));
        }
        Ok(entries.as_slice().iter().map(|entry| (entry.index, entry.data)).collect())
    }

    fn entries(&self) -> Result<Msrs, MachineError> {
        entries(self.0.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }))
    }
}

/// Writes the values, in their order.
pub(super) fn write(vcpu: &VcpuFd, values: impl Iterator<Item = (u32, u64)>) -> Result<(), MachineError> {
    let entries =
        entries(values.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() }))?;
    if entries.as_slice().is_empty() {
        return Ok(());
    }
    let written = vcpu.set_msrs(&entries).map_err(failed("writing MSRs"))?;
    match entries.as_slice().get(written) {
        None => Ok(()),
        Some(entry) => Err(refused("writing", entry.index)),
    }
}

fn entries(list: impl Iterator<Item = kvm_msr_entry>) -> Result<Msrs, MachineError> {
    let list: Vec<_> = list.collect();
    Msrs::from_entries(&list).map_err(|error| MachineError::Driver {
        doing: format!("listing {} MSRs", list.len()),
        message: format!("{error:?}"),
    })
}

fn refused(doing: &str, index: u32) -> MachineError {
    MachineError::Driver { doing: format!("{doing} MSR {index:#x}"), message: "KVM refused it".into() }
}
