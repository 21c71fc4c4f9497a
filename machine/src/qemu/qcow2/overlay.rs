//! A qcow2 file with only a guest's writes; the rest is read from the user's disk.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::header::{
    BACKING_FORMAT, BLOCK_CLUSTERS, CLUSTER, HEADER_BYTES, Header, L2_ENTRIES, NewHeader, refcounts,
};

/// Creates an overlay of `size_bytes` over `backing` (an absolute path) whose format is `raw` or `qcow2`. Fails when
/// the file exists.
pub(in crate::qemu) fn create(
    path: &Path,
    backing: &Path,
    format: &str,
    size_bytes: u64,
) -> std::io::Result<()> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, what.to_owned());
    let name = backing.as_os_str().as_bytes();
    let per_entry = (CLUSTER * L2_ENTRIES) as u64;
    let l1_entries =
        u32::try_from(size_bytes.div_ceil(per_entry)).map_err(|_| invalid("the disk is too large"))?;
    let l1_clusters = (l1_entries as usize * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    if name.len() > 1023 {
        return Err(invalid("the disk's path is longer than 1023 bytes"));
    }
    if clusters > BLOCK_CLUSTERS {
        return Err(invalid("the disk is too large"));
    }

    let mut extensions = Vec::new();
    extensions.extend(BACKING_FORMAT.to_be_bytes());
    // Both formats' names are a few bytes long.
    extensions.extend(u32::try_from(format.len()).unwrap_or_default().to_be_bytes());
    extensions.extend(format.as_bytes());
    extensions.resize(extensions.len().next_multiple_of(8) + 8, 0); // the end is an extension of zeros
    let name_at = HEADER_BYTES + extensions.len();
    let header = NewHeader {
        virtual_size_bytes: size_bytes,
        l1_entries,
        l1_offset: 3 * CLUSTER as u64,
        snapshots: 0,
        snapshots_offset: 0,
        // At most 1023, as checked above.
        backing: (name_at as u64, u32::try_from(name.len()).unwrap_or_default()),
    };
    let mut bytes = header.bytes();
    bytes.extend(extensions);
    bytes.extend(name);
    bytes.resize(CLUSTER, 0);
    bytes.extend(refcounts(clusters));
    bytes.resize(clusters * CLUSTER, 0);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&bytes).inspect_err(|_| {
        // The next launch would accept a truncated overlay as valid.
        let _ = std::fs::remove_file(path);
    })
}

/// Whether the file is an overlay of `size_bytes` over `backing`.
pub(in crate::qemu) fn is_over(path: &Path, backing: &Path, size_bytes: u64) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let Some(header) = Header::read(&file)? else { return Ok(false) };
    let name = header.backing_file(&file)?;
    Ok(header.virtual_size_bytes == size_bytes && name.as_deref() == Some(backing.as_os_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_img_reads_the_disk_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let (base, path) = (dir.path().join("base.raw"), dir.path().join("o.qcow2"));
        let mut disk = vec![0_u8; 3 << 20];
        disk[2 << 20] = 7;
        std::fs::write(&base, &disk).unwrap();
        create(&path, &base, "raw", 3 << 20).unwrap();
        assert!(is_over(&path, &base, 3 << 20).unwrap());
        assert!(!is_over(&path, &base, 4 << 20).unwrap());
        assert!(!is_over(&path, dir.path(), 3 << 20).unwrap());
        assert!(!is_over(&base, &base, 3 << 20).unwrap());
        assert_eq!(create(&path, &base, "raw", 1).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        let run = |args: &[&str]| {
            std::process::Command::new("qemu-img").args(args).current_dir(dir.path()).output()
        };
        let Ok(check) = run(&["check", "o.qcow2"]) else {
            eprintln!("SKIPPED: qemu-img (package qemu-utils) is not installed");
            return;
        };
        assert!(
            check.status.success() && String::from_utf8_lossy(&check.stdout).contains("No errors"),
            "{check:?}"
        );
        assert!(run(&["compare", "-fqcow2", "-Fraw", "o.qcow2", "base.raw"]).unwrap().status.success());
    }

    #[test]
    fn large_disks_have_a_large_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.qcow2");
        let size = 6 << 40;
        create(&path, Path::new("/base"), "qcow2", size).unwrap();
        assert!(is_over(&path, Path::new("/base"), size).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 5 * CLUSTER as u64);
        assert!(create(&dir.path().join("p"), Path::new("/base"), "raw", u64::MAX).is_err());
        assert!(!dir.path().join("p").exists());
    }
}
