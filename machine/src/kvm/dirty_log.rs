use std::os::fd::AsRawFd as _;

use kvm_bindings::{kvm_dirty_log, kvm_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use retrovisor_guest::MachineError;

mod ioctl {
    use kvm_bindings::kvm_dirty_log;

    nix::ioctl_write_ptr!(get_dirty_log, 0xae, 0x42, kvm_dirty_log);
}

// The number from include/uapi/linux/kvm.h: KVM_GET_DIRTY_LOG carries 16 bytes.
const _: () = assert!(size_of::<kvm_dirty_log>() == 16);

/// KVM's log of the pages that vCPUs have written, and a buffer for it, which is reused: allocating it would take as
/// long as reading.
#[derive(Default)]
pub(super) struct DirtyLog {
    words: Vec<u64>,
}

impl DirtyLog {
    /// Reads the log of one slot of this many pages since the last read, one bit for each page. Reading clears it.
    pub(super) fn read(&mut self, vm: &VmFd, slot: u32, pages: u64) -> Result<&[u64], MachineError> {
        let count = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        if self.words.len() < count {
            self.words.resize(count, 0);
        }
        let words = &mut self.words[..count];
        let log = kvm_dirty_log {
            slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_mut_ptr().cast() },
        };
        // SAFETY: KVM writes one bit for each page of the slot, rounded up to 64: that is what `words` has room for.
        unsafe { ioctl::get_dirty_log(vm.as_raw_fd(), &raw const log) }.map_err(|errno| {
            MachineError::Driver {
                doing: format!("reading the dirty log of memory slot {slot}"),
                message: errno.desc().into(),
            }
        })?;
        Ok(words)
    }
}
