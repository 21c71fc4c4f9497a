//! Finds the frames of the guest that were written.

use nix::errno::Errno;
use retrovisor_guest::{Gfn, MachineError, MemoryError, MemoryView as _, PageContent, PageSet};

use super::compare::Comparison;
use super::mapping::Mapping;
use super::pagemap::Pagemap;
use super::write_protection;
use crate::ram::Ram;

/// How written frames are found, and the reason.
pub(super) struct Finder {
    method: Method,
    reason: String,
}

enum Method {
    /// The kernel records writes through QEMU's own mapping.
    Userfaultfd(ProtectedMemory),
    /// The whole memory is compared with a copy.
    Compare(Comparison),
}

/// QEMU's mapping of the guest's memory, under asynchronous write protection.
///
/// Writes of vCPUs and of devices are recorded. Writes through another mapping (the driver's) are not, and leave the
/// page protected in QEMU's mapping: a later write of the guest is recorded.
struct ProtectedMemory {
    pid: i32,
    mapping: Mapping,
    pagemap: Pagemap,
    /// The next scan reports every frame.
    reports_all: bool,
}

impl Finder {
    /// Uses the kernel's records if QEMU's memory is under asynchronous write protection or can be put under it, else
    /// compares.
    pub(super) fn new(pid: i32, mapping: &Mapping, ram: &Ram) -> Self {
        match ProtectedMemory::find_or_register(pid, mapping) {
            Ok((memory, reason)) => Self { method: Method::Userfaultfd(memory), reason },
            Err(reason) => Self { method: Method::Compare(Comparison::new(ram.layout())), reason },
        }
    }

    /// `userfaultfd` or `compare`, and the reason.
    pub(super) fn describe(&self) -> (&'static str, &str) {
        let name = match self.method {
            Method::Userfaultfd(_) => "userfaultfd",
            Method::Compare(_) => "compare",
        };
        (name, &self.reason)
    }

    /// Must be called before the guest is resumed.
    pub(super) fn unsettle(&mut self) {
        if let Method::Compare(comparison) = &mut self.method {
            comparison.unsettle();
        }
    }

    /// Must be called before a frame is read on behalf of a caller.
    pub(super) fn note_read(&self, gfn: Gfn) {
        if let Method::Compare(comparison) = &self.method {
            comparison.note_read(gfn);
        }
    }

    /// Writes a frame with `write`, and records it.
    pub(super) fn write(
        &mut self,
        gfn: Gfn,
        content: PageContent<'_>,
        write: impl FnOnce() -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        match &mut self.method {
            Method::Userfaultfd(_) => write(),
            Method::Compare(comparison) => comparison.write(gfn, content, write),
        }
    }

    /// Adds the written frames, as [`retrovisor_guest::MemoryIo::take_dirty`] requires.
    pub(super) fn scan(
        &mut self,
        ram: &Ram,
        is_running: bool,
        into: &mut PageSet,
    ) -> Result<(), MachineError> {
        if let Method::Userfaultfd(memory) = &mut self.method {
            if memory.scan(ram, into)? {
                return Ok(());
            }
            "QEMU has mapped its memory again since it was put under write protection"
                .clone_into(&mut self.reason);
            tracing::warn!(reason = self.reason, "written pages are found by comparing from now on");
            self.method = Method::Compare(Comparison::new(ram.layout()));
        }
        if let Method::Compare(comparison) = &mut self.method {
            comparison.scan(ram, is_running, into)?;
        }
        Ok(())
    }
}

impl ProtectedMemory {
    /// Also returns why the kernel's records are used, or why they are not.
    fn find_or_register(pid: i32, mapping: &Mapping) -> Result<(Self, String), String> {
        let open = || Pagemap::open(pid, mapping.start, mapping.length_bytes);
        let new = |pagemap| Self { pid, mapping: mapping.clone(), pagemap, reports_all: true };
        match open() {
            Ok(pagemap) => return Ok((new(pagemap), "the kernel notes what QEMU's process writes".into())),
            // It is not under asynchronous write protection.
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(scan_refusal(errno)),
        }
        let stopped = write_protection::register(pid, mapping).map_err(|error| {
            format!("QEMU's memory cannot be put under asynchronous write protection: {error}")
        })?;
        let pagemap = open().map_err(|errno| {
            let _ = write_protection::remove(pid);
            scan_refusal(errno)
        })?;
        let reason = format!(
            "the kernel notes what QEMU's process writes; set up in the running process, whose main thread was stopped \
             for {} µs",
            stopped.as_micros()
        );
        Ok((new(pagemap), reason))
    }

    /// Adds the written frames. `false` if QEMU's memory is no longer at the protected address.
    fn scan(&mut self, ram: &Ram, into: &mut PageSet) -> Result<bool, MachineError> {
        let start = self.pagemap.start();
        let mut insert = |from: u64, to: u64| {
            for index in (from - start) / 4096..(to - start) / 4096 {
                into.insert_index(index);
            }
        };
        let scanned = self.pagemap.scan(&mut insert);
        // Pages that a failed call protected may be missing from its result.
        self.reports_all |= scanned.is_err();
        let fails = |message: String| MachineError::Driver {
            doing: "scanning QEMU's memory for written pages".into(),
            message,
        };
        match scanned {
            Ok(()) => {}
            Err(Errno::EPERM) => return Ok(false),
            Err(errno) => return Err(fails(errno.desc().into())),
        }
        // For a scan, unmapped addresses are pages that were not written.
        let is_mapped = self.mapping.is_mapped(self.pid).map_err(|error| fails(error.to_string()));
        self.reports_all |= is_mapped.is_err();
        if !is_mapped? {
            return Ok(false);
        }
        if std::mem::take(&mut self.reports_all) {
            *into = PageSet::full(ram.layout());
        }
        Ok(true)
    }
}

/// Why the kernel does not scan for written pages.
fn scan_refusal(errno: Errno) -> String {
    match errno {
        Errno::EPERM => "QEMU's memory is not under asynchronous write protection".into(),
        Errno::ENOTTY => "this kernel cannot scan for written pages (Linux 6.7 and later can)".into(),
        Errno::EACCES => "no permission to read the page map of QEMU's process".into(),
        other => format!("scanning for written pages fails ({})", other.desc()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

    use nix::libc;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;
    use retrovisor_guest::{MemoryLayout, PAGE_SIZE};
    use retrovisor_scripted::KnownFrames;

    use super::*;

    const FRAMES: u64 = 9;

    /// `struct uffdio_api` and `struct uffdio_register` of the kernel.
    #[repr(C)]
    #[derive(Default)]
    struct Api {
        version: u64,
        features: u64,
        ioctls: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Register {
        start: u64,
        length: u64,
        mode: u64,
        ioctls: u64,
    }
    nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);

    /// Puts a mapping under asynchronous write protection, as `preload.c` does in QEMU. `None`, with a message, if the
    /// kernel does not permit it.
    fn protect(mapping: &Mapping) -> Option<OwnedFd> {
        // SAFETY: the call takes flags and answers a descriptor or an error; no memory is passed.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | 1) };
        if fd < 0 {
            eprintln!("SKIPPED: userfaultfd: {}", std::io::Error::last_os_error());
            return None;
        }
        // SAFETY: the descriptor was made just now, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
        let mut api = Api { version: 0xaa, features: 1 << 15 | 1 << 13 | 1 << 12, ioctls: 0 };
        let mut range =
            Register { start: mapping.start, length: mapping.length_bytes, mode: 2, ..Register::default() };
        // SAFETY: both structures have the kernel's layout, and live over the calls.
        let done = unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }
            // SAFETY: as above.
            .and_then(|_| unsafe { uffdio_register(fd.as_raw_fd(), &raw mut range) });
        match done {
            Ok(_) => Some(fd),
            Err(errno) => {
                eprintln!("SKIPPED: asynchronous write protection: {errno}");
                None
            }
        }
    }

    /// QEMU's mapping of a memory file, and the driver's.
    struct Lab {
        qemu: Ram,
        driver: Ram,
        finder: Finder,
        layout: MemoryLayout,
        /// Keeps the registration: closing it ends the write protection.
        protection: OwnedFd,
    }

    impl Lab {
        fn new() -> Option<Self> {
            let layout = MemoryLayout::flat(FRAMES * PAGE_SIZE as u64).unwrap();
            let file = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(layout.bytes()).unwrap();
            let qemu = Ram::shared(layout.clone(), file.try_clone().unwrap(), 0).unwrap();
            let pid = i32::try_from(std::process::id()).unwrap();
            let start = qemu.mappings().next().unwrap().1 as u64;
            let mapping = Mapping::find(pid, layout.bytes()).unwrap();
            let mapping = mapping.into_iter().find(|mapping| mapping.start == start).unwrap();
            let protection = protect(&mapping)?;
            let finder = Finder::new(pid, &mapping, &qemu);
            assert_eq!(finder.describe().0, "userfaultfd");
            let driver = Ram::shared(layout.clone(), file, 0).unwrap();
            Some(Self { qemu, driver, finder, layout, protection })
        }

        fn scan(&mut self) -> PageSet {
            let mut found = PageSet::empty(&self.layout);
            self.finder.scan(&self.driver, true, &mut found).unwrap();
            found
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        GuestWrites(u64, u8),
        GuestReads(u64),
        DriverWrites(u64, u8),
        Reads(u64),
        Scans,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (frame, byte) = (|| 0..FRAMES, || 0..3_u8);
        prop_oneof![
            6 => (frame(), byte()).prop_map(|(frame, byte)| Step::GuestWrites(frame, byte)),
            2 => frame().prop_map(Step::GuestReads),
            4 => (frame(), byte()).prop_map(|(frame, byte)| Step::DriverWrites(frame, byte)),
            6 => frame().prop_map(Step::Reads),
            5 => Just(Step::Scans),
        ]
    }

    #[test]
    fn the_driver_writes_unseen_and_the_guest_never_does() {
        let Some(mut lab) = Lab::new() else { return };
        assert_eq!(lab.scan(), PageSet::full(&lab.layout));
        assert!(lab.scan().is_empty());
        let (old, new) = (PageContent::Data(&[1; PAGE_SIZE]), PageContent::Data(&[2; PAGE_SIZE]));
        lab.qemu.write_page(Gfn(3), old).unwrap();
        assert_eq!(lab.scan().iter().collect::<Vec<_>>(), [Gfn(3)]);
        lab.driver.write_page(Gfn(3), new).unwrap();
        lab.driver.write_page(Gfn(4), new).unwrap();
        assert!(lab.scan().is_empty());
        lab.qemu.write_page(Gfn(3), old).unwrap();
        lab.qemu.write_page(Gfn(4), PageContent::Zero).unwrap();
        assert_eq!(lab.scan().iter().collect::<Vec<_>>(), [Gfn(3), Gfn(4)]);
    }

    #[test]
    fn memory_that_is_mapped_again_is_compared_from_then_on() {
        let Some(Lab { qemu, driver, mut finder, layout, protection }) = Lab::new() else { return };
        let mut scan = || {
            let mut found = PageSet::empty(&layout);
            finder.scan(&driver, true, &mut found).unwrap();
            (found, finder.describe().0)
        };
        assert_eq!(scan(), (PageSet::full(&layout), "userfaultfd"));
        assert_eq!(scan(), (PageSet::empty(&layout), "userfaultfd"));
        drop(qemu);
        assert_eq!(scan(), (PageSet::full(&layout), "compare"));
        driver.write_page(Gfn(5), PageContent::Data(&[5; PAGE_SIZE])).unwrap();
        assert_eq!(scan().0.iter().collect::<Vec<_>>(), [Gfn(5)]);
        drop(protection);
    }

    #[test]
    fn what_was_read_or_written_stays_so_until_the_frame_is_reported() {
        if Lab::new().is_none() {
            return;
        }
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
        let steps = prop::collection::vec(step(), 0..60);
        let run = |steps: Vec<Step>| {
            let mut lab = Lab::new().unwrap();
            let layout = lab.layout.clone();
            let mut known = KnownFrames::new(&layout);
            for step in steps {
                match step {
                    Step::GuestWrites(frame, byte) => {
                        lab.qemu.write_page(Gfn(frame), PageContent::Data(&[byte; PAGE_SIZE])).unwrap();
                    }
                    // Maps the page in QEMU without writing it.
                    Step::GuestReads(frame) => lab.qemu.read_page(Gfn(frame), &mut [0; PAGE_SIZE]).unwrap(),
                    Step::DriverWrites(frame, byte) => {
                        let page = [byte; PAGE_SIZE];
                        let (driver, content) = (&lab.driver, PageContent::Data(&page));
                        let write = || driver.write_page(Gfn(frame), content);
                        lab.finder.write(Gfn(frame), content, write).unwrap();
                        known.wrote(Gfn(frame), &page);
                    }
                    Step::Reads(frame) => known.read(&lab.driver, Gfn(frame)).unwrap(),
                    Step::Scans => {
                        known.reported(&lab.scan());
                        prop_assert_eq!(known.wrong(&lab.driver).unwrap(), []);
                    }
                }
            }
            Ok(())
        };
        runner.run(&steps, run).unwrap();
    }
}
