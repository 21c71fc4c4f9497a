use std::path::{Path, PathBuf};

use retrovisor_machine::qemu::{DiskConfig, LaunchConfig};

/// The guest that `make setup` prepared.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// Stock Debian kernel.
    pub kernel: PathBuf,
    /// Busybox and the workload.
    pub initrd: PathBuf,
    /// ext4 disk; only ever read.
    pub disk: PathBuf,
}

impl GuestImage {
    /// The image and QEMU, or, loudly, nothing: then the test has to return.
    #[must_use]
    pub fn find() -> Option<Self> {
        let image = Self::files()?;
        if std::process::Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
            eprintln!("SKIPPED: qemu-system-x86_64 is not installed: `make setup` does it");
            return None;
        }
        Some(image)
    }

    /// The image alone, or, loudly, nothing.
    #[must_use]
    pub fn files() -> Option<Self> {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        let cache =
            std::env::var_os("RETROVISOR_CACHE").map_or_else(|| base.join("retrovisor"), PathBuf::from);
        let dir = cache.join("guest");
        let image = Self {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initramfs.cpio.gz"),
            disk: dir.join("disk.raw"),
        };
        if ![&image.kernel, &image.initrd, &image.disk].into_iter().all(|file| file.exists()) {
            eprintln!("SKIPPED: there is no guest at {}: make it with `make setup`", dir.display());
            return None;
        }
        Some(image)
    }
}

/// A 512-MiB guest with its disk, whose files are in `runtime_dir`.
#[must_use]
pub fn launch_config(image: &GuestImage, name: &str, runtime_dir: &Path, paused: bool) -> LaunchConfig {
    LaunchConfig {
        name: name.to_owned(),
        kernel: image.kernel.clone(),
        initrd: Some(image.initrd.clone()),
        append: "console=ttyS0 quiet panic=-1".to_owned(),
        disks: vec![DiskConfig { name: "d0".to_owned(), path: image.disk.clone() }],
        memory_bytes: 512 << 20,
        vcpus: 2,
        accelerator: None,
        runtime_dir: runtime_dir.to_owned(),
        binary: None,
        board: None,
        paused,
        detached: false,
    }
}
