use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Accelerator, Interface};

/// The driver of a spec without one: specs of earlier versions, and machines that another program started.
pub const DRIVER_DEFAULT: &str = "qemu";

/// The configuration of a machine. It is stored in the catalogue: fields that earlier versions did not write have
/// defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Linux kernel (bzImage).
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// Disk images, which are never written: the guest's writes go to an overlay.
    pub disks: Vec<PathBuf>,
    /// Memory.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The name of its driver.
    #[serde(default = "driver_default")]
    pub driver: String,
    /// What runs the guest, where the driver has a choice; `None` for the fastest one that works.
    pub accelerator: Option<Accelerator>,
    /// Network interfaces, in order.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Whether a microVM has a control channel; machines of earlier versions have none.
    #[serde(default)]
    pub channel: bool,
}

fn driver_default() -> String {
    DRIVER_DEFAULT.to_owned()
}
