//! `ioctl(PAGEMAP_SCAN)`: which pages of another process were written, and protect them again, in one call.
//! Linux 6.7 and later.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// One run of pages in the kernel's answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Region {
    /// First address.
    pub(super) start: u64,
    /// First address past it.
    pub(super) end: u64,
    categories: u64,
}

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArgument>() == 96 && size_of::<Region>() == 24);

/// Write-protect what is reported.
const PM_SCAN_WP_MATCHING: u64 = 1;
/// Fail with EPERM where the range is not under asynchronous write protection.
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 2;
/// Runs read from the kernel at once.
const REGIONS: usize = 4096;

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArgument);

/// A range of another process's addresses, to be scanned.
pub(super) struct Pagemap {
    file: File,
    start: u64,
    end: u64,
    regions: Vec<Region>,
}

impl Pagemap {
    /// `EPERM` when the range is not under asynchronous write protection, `ENOTTY` when the kernel has no such scan.
    pub(super) fn open(pid: i32, start: u64, length_bytes: u64) -> Result<Self, Errno> {
        let file = File::open(format!("/proc/{pid}/pagemap"))
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        let end = start.checked_add(length_bytes).ok_or(Errno::EINVAL)?;
        let mut pagemap = Self { file, start, end, regions: vec![Region::default(); REGIONS] };
        // Checks the first page, without protecting anything.
        pagemap.call(PM_SCAN_CHECK_WPASYNC, start, 1)?;
        Ok(pagemap)
    }

    /// First address of the range.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Protects every written page and passes its run of addresses (page-aligned, inside the range) to `found`. After
    /// an error, more pages may be protected than `found` was given.
    pub(super) fn scan(&mut self, mut found: impl FnMut(u64, u64)) -> Result<(), Errno> {
        let mut from = self.start;
        while from < self.end {
            let (walk_end, count) = self.call(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, from, 0)?;
            for region in &self.regions[..count] {
                found(region.start.max(self.start), region.end.min(self.end));
            }
            if walk_end <= from {
                return Err(Errno::EIO);
            }
            from = walk_end;
        }
        Ok(())
    }

    /// One call; returns where the kernel stopped, and how many runs it wrote.
    fn call(&mut self, flags: u64, from: u64, max_pages: u64) -> Result<(u64, usize), Errno> {
        loop {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags,
                start: from,
                end: self.end,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: `argument` has the layout that the kernel expects (checked above) and contains its own size;
            // the kernel writes only into it and into the `vec_len` entries at `vec`, which `self.regions` owns
            // and nothing else reads during the call.
            match unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut argument) } {
                Ok(count) => {
                    let count = usize::try_from(count).unwrap_or(0).min(self.regions.len());
                    return Ok((argument.walk_end, count));
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
