use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Accelerator, Interface};

/// The driver of a spec that names none: those of earlier versions, and machines that another program started.
pub const DRIVER_DEFAULT: &str = "qemu";

/// What a machine is started with. It is kept in the catalogue: fields that earlier versions did not write have defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Linux kernel (bzImage).
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// Disk images; they are only read, what the guest writes is kept beside them.
    pub disks: Vec<PathBuf>,
    /// Memory.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The name of its driver.
    #[serde(default = "driver_default")]
    pub driver: String,
    /// What runs the guest, where the driver has a choice; `None` takes the fastest one that works.
    pub accelerator: Option<Accelerator>,
    /// Network interfaces, in order.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Whether a microVM has a control channel; those of earlier versions have none.
    #[serde(default)]
    pub channel: bool,
}

fn driver_default() -> String {
    DRIVER_DEFAULT.to_owned()
}
