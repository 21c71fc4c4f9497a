//! Which frames of the guest were written.

use nix::errno::Errno;
use retrovisor_guest::{MachineError, PageSet};

use super::mapping::Mapping;
use super::pagemap::Pagemap;
use crate::ram::Ram;

/// How written frames are found, and why so.
pub(super) struct Finder {
    way: Way,
    reason: String,
    /// Found, and not yet handed over.
    pending: PageSet,
    /// Nothing was handed over yet: the next answer is every frame.
    first: bool,
}

enum Way {
    /// The kernel notes writes of QEMU's process (vCPUs and devices).
    Userfaultfd(Pagemap),
    /// The whole memory is compared with a copy.
    Compare {
        /// The memory at the last look; empty before the first.
        shadow: Vec<u8>,
        /// Frames reported while the guest ran: what was read after the report may be newer than the shadow,
        /// and could turn back into the shadow's bytes unseen. They are reported once more.
        unsure: PageSet,
    },
}

impl Finder {
    /// Takes the kernel's notes where QEMU's memory is under asynchronous write protection, else compares.
    pub(super) fn new(pid: i32, mapping: &Mapping, ram: &Ram) -> Self {
        let layout = retrovisor_guest::MemoryView::layout(ram);
        let (way, reason) = match Pagemap::open(pid, mapping.start, mapping.length_bytes) {
            Ok(pagemap) => {
                (Way::Userfaultfd(pagemap), "the kernel notes what QEMU's process writes".to_owned())
            }
            Err(errno) => {
                let reason = match errno {
                    Errno::EPERM => {
                        "QEMU's memory is not under asynchronous write protection (it was started by \
                                     others, or this kernel does not allow it)"
                            .to_owned()
                    }
                    Errno::ENOTTY => {
                        "this kernel cannot scan for written pages (Linux 6.7 and later can)".into()
                    }
                    Errno::EACCES => "no permission to read the page map of QEMU's process".into(),
                    other => format!("scanning for written pages fails ({})", other.desc()),
                };
                (Way::Compare { shadow: Vec::new(), unsure: PageSet::empty(layout) }, reason)
            }
        };
        Self { way, reason, pending: PageSet::empty(layout), first: true }
    }

    /// `userfaultfd` or `compare`, and why.
    pub(super) fn describe(&self) -> (&'static str, &str) {
        let name = match self.way {
            Way::Userfaultfd(_) => "userfaultfd",
            Way::Compare { .. } => "compare",
        };
        (name, &self.reason)
    }

    /// As [`retrovisor_guest::Machine::take_dirty`] promises.
    pub(super) fn take(&mut self, ram: &Ram, running: bool, into: &mut PageSet) -> Result<(), MachineError> {
        let pending = &mut self.pending;
        match &mut self.way {
            Way::Userfaultfd(pagemap) => {
                let start = pagemap.start();
                let mut insert = |from: u64, to: u64| {
                    for index in (from - start) / 4096..(to - start) / 4096 {
                        pending.insert_index(index);
                    }
                };
                pagemap.scan(&mut insert).map_err(|errno| MachineError::Driver {
                    doing: "scanning QEMU's memory for written pages".into(),
                    message: errno.desc().into(),
                })?;
            }
            Way::Compare { shadow, unsure } => {
                if let Err(error) = ram.compare(shadow, pending) {
                    // Some frames may have been noted in the shadow and not reported: report all next time.
                    shadow.clear();
                    return Err(error.into());
                }
                pending.union(unsure);
                unsure.clear();
                if running {
                    unsure.union(pending);
                }
            }
        }
        if self.first {
            *pending = PageSet::full(pending.layout());
        }
        into.union(pending);
        pending.clear();
        self.first = false;
        Ok(())
    }
}
