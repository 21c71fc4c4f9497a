//! The guest's disks: an overlay over each of the user's images, and internal snapshots in it.

mod attached;
mod base;
mod blocks;
mod changes;
mod set;
mod writer;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::qcow2::header::{Header, MAGIC};
use super::qcow2::overlay;

pub(super) use attached::AttachedDisk;
pub(super) use set::{DiskSet, TAG_PREFIX};

/// Longest name of a disk: QEMU's limit is 31, and the backing node's is longer.
const NAME_BYTES_MAX: usize = 20;
/// Bytes in a sector: disks are whole sectors.
const SECTOR_BYTES: u64 = 512;

/// One disk of a machine to be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its name in the machine: `d0`. Lower-case letters, digits and `-`.
    pub name: String,
    /// The image: qcow2 when its name ends in `.qcow2`, else raw. It is never written: the guest's writes go to an
    /// overlay in the runtime directory, which the next launch there uses again.
    ///
    /// The overlay is written through the host's page cache without waiting for the host's disk: it survives the end of
    /// QEMU. `sync_state` makes the data of a checkpoint durable before that is committed; after a power failure
    /// `qemu-img check -r all` may have to repair the reference counts.
    pub path: PathBuf,
}

impl DiskConfig {
    /// Creates the overlay if it does not exist. Returns its path and whether it is new, with QEMU's description.
    pub(super) fn prepare(&self, dir: &Path) -> Result<(PathBuf, bool, Value), MachineError> {
        let config = |what: String, help: &str| MachineError::Config { what, help: help.into() };
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !self.name.bytes().all(plain)
            || !self.name.starts_with(|c: char| c.is_ascii_lowercase())
            || self.name.len() > NAME_BYTES_MAX
        {
            return Err(config(
                format!("{:?} is not a disk's name", self.name),
                "Use lower-case letters, digits and `-`, a letter first, 20 at most",
            ));
        }
        let shown = self.path.display();
        let cannot = |error: std::io::Error| {
            config(format!("the disk {shown} cannot be read: {error}"), "Name a raw or qcow2 image")
        };
        let base = self.path.canonicalize().map_err(cannot)?;
        let file = File::open(&base).map_err(cannot)?;
        let format =
            if base.extension().is_some_and(|extension| extension == "qcow2") { "qcow2" } else { "raw" };
        let size_bytes = if format == "qcow2" {
            let header = Header::read(&file).map_err(cannot)?;
            let header = header.ok_or_else(|| {
                config(format!("{shown} is not a qcow2 image"), "Give a raw image another ending than .qcow2")
            })?;
            header.virtual_size_bytes
        } else {
            // A guest could write such a header itself, and so name any file of the host as its disk.
            let mut start = [0; 4];
            if file.read_exact_at(&mut start, 0).is_ok() && start == MAGIC {
                return Err(config(
                    format!("the raw disk {shown} begins like a qcow2 image"),
                    "If it is one, give it a name that ends in .qcow2",
                ));
            }
            file.metadata().map_err(cannot)?.len()
        };
        if size_bytes == 0 {
            return Err(config(format!("the disk {shown} is empty"), "Name a raw or qcow2 image"));
        }
        let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        let path = dir.join(format!("{}.qcow2", self.name));
        let new = match overlay::create(&path, &base, format, size_bytes) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if !overlay::is_over(&path, &base, size_bytes).map_err(cannot)? {
                    return Err(config(
                        format!("{} holds changes to another disk than {shown}", path.display()),
                        "Use another runtime directory, or remove that file if its changes are of no use",
                    ));
                }
                false
            }
            Err(source) => {
                return Err(MachineError::Io {
                    doing: format!("making the overlay {}", path.display()),
                    source,
                });
            }
        };
        let description = json!({
            "driver": "qcow2", "node-name": self.name, "discard": "unmap", "cache": { "no-flush": true },
            "file": { "driver": "file", "filename": path, "discard": "unmap", "cache": { "no-flush": true } },
            "backing": {
                "driver": format, "node-name": format!("{}-base", self.name), "read-only": true,
                "file": { "driver": "file", "filename": base, "read-only": true },
            },
        });
        Ok((path, new, description))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &Path) -> DiskConfig {
        DiskConfig { name: "d0".into(), path: path.to_path_buf() }
    }

    #[test]
    fn the_overlay_is_made_once_and_never_over_another_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one.raw"), dir.path().join("two.raw"));
        std::fs::write(&one, [1; 700]).unwrap();
        std::fs::write(&two, [1; 700]).unwrap();
        let (path, new, description) = disk(&one).prepare(dir.path()).unwrap();
        assert!(new && path.exists());
        assert_eq!(description["backing"]["driver"], "raw");
        assert_eq!(Header::read(&File::open(&path).unwrap()).unwrap().unwrap().virtual_size_bytes, 1024);
        assert!(!disk(&one).prepare(dir.path()).unwrap().1);
        let error = disk(&two).prepare(dir.path()).unwrap_err();
        assert!(error.to_string().contains("another disk"), "{error}");
        // An overlay is a qcow2 image itself.
        let nested = DiskConfig { name: "d1".into(), path };
        assert_eq!(nested.prepare(dir.path()).unwrap().2["backing"]["driver"], "qcow2");
    }

    #[test]
    fn unusable_disks_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        for (path, word) in [
            (dir.path().join("absent"), "cannot be read"),
            (make("empty.raw", b""), "is empty"),
            (make("trap.raw", b"QFI\xfb and more"), "begins like a qcow2"),
            (make("raw.qcow2", b"raw"), "not a qcow2"),
        ] {
            let error = disk(&path).prepare(dir.path()).unwrap_err();
            assert!(
                matches!(error, MachineError::Config { .. }) && error.to_string().contains(word),
                "{error}"
            );
        }
        let named = |name: &str| DiskConfig { name: name.into(), path: make("x", &[0; 512]) };
        for name in ["", "D0", "0d", "a/b", "../x", "a,b", &"d".repeat(21)] {
            assert!(named(name).prepare(dir.path()).is_err(), "{name}");
        }
    }
}
