//! The mapping of the guest's memory in a QEMU process, and the file behind it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;

/// A shared, writable mapping of a file in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) length_bytes: u64,
    /// Where in the file the mapping begins.
    pub(super) offset: u64,
    device: (u32, u32),
    inode: u64,
    /// As the kernel names it: `/dev/shm/ram`, `/memfd:ram (deleted)`.
    pub(super) name: String,
}

impl Mapping {
    /// The process's shared file mappings that are `length_bytes` long.
    pub(super) fn find(pid: i32, length_bytes: u64) -> std::io::Result<Vec<Self>> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let all = maps.lines().filter_map(Self::parse);
        Ok(all.filter(|mapping| mapping.length_bytes == length_bytes).collect())
    }

    /// Whether the process still has this mapping. An error when it has no mapping at all, because it ended.
    pub(super) fn is_mapped(&self, pid: i32) -> std::io::Result<bool> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        if maps.is_empty() {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        // Not the name, which changes when the file is renamed or removed.
        let place = |mapping: &Self| {
            (mapping.start, mapping.length_bytes, mapping.offset, mapping.device, mapping.inode)
        };
        Ok(maps.lines().filter_map(Self::parse).any(|mapping| place(&mapping) == place(self)))
    }

    /// One line of `/proc/PID/maps`, when it is a shared, writable mapping of a file.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        if fields.next()? != "rw-s" {
            return None;
        }
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
        let name = fields.next().unwrap_or_default().trim_start().to_owned();
        let length_bytes = end.checked_sub(start)?;
        Some(Self { start, length_bytes, offset, device, inode, name })
    }

    /// Opens the mapped file itself, even if its name is gone or belongs to another file.
    pub(super) fn open(&self, pid: i32) -> std::io::Result<File> {
        let own = |file: &File| file.metadata().is_ok_and(|found| self.is(&found));
        // QEMU keeps the descriptor open; reopening it checks the permissions again, and gives a separate offset.
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            if std::fs::metadata(&path).is_ok_and(|found| self.is(&found)) {
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                if own(&file) {
                    return Ok(file);
                }
            }
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.name)?;
        if own(&file) { Ok(file) } else { Err(std::io::ErrorKind::NotFound.into()) }
    }

    fn is(&self, found: &std::fs::Metadata) -> bool {
        let device = (nix::sys::stat::major(found.dev()), nix::sys::stat::minor(found.dev()));
        found.ino() == self.inode && device == (u64::from(self.device.0), u64::from(self.device.1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_of_maps() {
        let line =
            "7ff497fff000-7ff4b7fff000 rw-s 00001000 00:01 1032                       /memfd:ram (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.length_bytes), (0x7ff4_97ff_f000, 512 << 20));
        assert_eq!((mapping.offset, mapping.device, mapping.inode), (4096, (0, 1), 1032));
        assert_eq!(mapping.name, "/memfd:ram (deleted)");
        assert_eq!(Mapping::parse("7ff497fff000-7ff4b7fff000 rw-p 00000000 00:00 0 "), None);
        assert_eq!(Mapping::parse("7ff497fff000-7ff4b7fff000 rw-s 00000000 00:00 0 [x]"), None);
    }

    #[test]
    fn a_mapped_file_without_a_name_is_opened() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x123_000).unwrap();
        let layout = retrovisor_guest::MemoryLayout::flat(0x123_000).unwrap();
        let _ram = crate::ram::Ram::shared(layout, file.try_clone().unwrap(), 0).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = Mapping::find(pid, 0x123_000).unwrap();
        let opened = found.iter().filter_map(|mapping| mapping.open(pid).ok());
        let own = file.metadata().unwrap().ino();
        assert!(opened.map(|file| file.metadata().unwrap().ino()).any(|inode| inode == own));
    }

    proptest! {
        #[test]
        fn any_line_is_a_mapping_or_none(line in ".{0,80}", start in any::<u64>(), end in any::<u64>()) {
            let _ = Mapping::parse(&line);
            let _ = Mapping::parse(&format!("{start:x}-{end:x} rw-s 0 0:1 5 {line}"));
        }
    }
}
