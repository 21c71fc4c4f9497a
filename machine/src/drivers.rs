use std::path::Path;

use retrovisor_guest::Drivers;

use crate::kvm::KvmDriver;
use crate::qemu::QemuDriver;

/// All drivers, the one with the shortest pauses first. `hubs_dir` is the folder for the sockets of hubs.
#[must_use]
pub fn drivers(hubs_dir: &Path) -> Drivers {
    Drivers::new().with(KvmDriver::new(hubs_dir)).with(QemuDriver)
}
