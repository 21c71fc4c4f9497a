//! The owner of a frame, and its form as text.

mod allocations;
mod map;
mod mapped;
mod reader;
mod referrers;
mod share;

use std::{fmt, sync::Arc};

pub use map::OwnerMap;
pub use reader::OwnerReader;
pub use share::Share;

/// The owner of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageOwner {
    /// The kernel's image: code, constants, variables.
    Kernel {
        /// `text`, `rodata`, `data` or `init` (freed after boot).
        part: &'static str,
        /// The frame's kernel-virtual address.
        virt: u64,
        /// The symbol that contains the frame's first byte.
        symbol: Option<String>,
        /// Offset in the symbol.
        offset: u64,
    },
    /// The variables of one CPU.
    PerCpu {
        /// The CPU.
        cpu: u32,
        /// Offset in the CPU's area; a symbol's address in the image's per-CPU section.
        offset: u64,
        /// The per-CPU variable that contains the frame's first byte; `None` past the image's own variables.
        symbol: Option<String>,
    },
    /// A module's memory.
    Module {
        /// The module.
        name: String,
        /// The section that contains the frame's first byte, where the kernel records it.
        section: Option<Arc<str>>,
        /// From the start of the section, or of the module's part.
        offset: u64,
    },
    /// A page table.
    PageTable {
        /// The process; `None` for the kernel's, and for a table in no known tree (then the level is 0).
        pid: Option<i32>,
        /// 1 for a table of pages, 5 for the top table; 0 for a table in no known tree.
        level: u8,
        /// First virtual address it covers.
        virt: u64,
    },
    /// A task's kernel stack.
    KernelStack {
        /// The task.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// Anonymous memory of a process.
    Process(Mapper),
    /// Anonymous memory that no process maps.
    Anonymous,
    /// A file's contents.
    PageCache {
        /// The file's path; a file without one is named by file system and inode.
        file: Option<Arc<str>>,
        /// Its inode number.
        inode: u64,
        /// Offset in the file, in pages.
        page: u64,
        /// How many times processes map the frame.
        mappers: u32,
    },
    /// Objects of the kernel's allocator.
    Slab {
        /// The cache: `task_struct`, `kmalloc-64`.
        cache: String,
        /// First and last object of the slab that overlap the frame, where their size is known.
        objects: Option<(u64, u64)>,
    },
    /// The kernel's array of page descriptors.
    PageDescriptors,
    /// Memory that the kernel maps page by page.
    Vmalloc {
        /// The code that allocated it.
        caller: Option<String>,
        /// Offset in its area, in bytes.
        offset: u64,
    },
    /// Never given to the page allocator: taken at boot, or by firmware.
    Reserved {
        /// Name of the resource in /proc/iomem.
        resource: Option<Arc<str>>,
        /// The kernel variable or object that points to it.
        referrer: Option<String>,
    },
    /// A block of the page allocator whose use no other source records.
    Allocated {
        /// The kernel variable or object that points to it.
        referrer: Option<String>,
    },
    /// Given back to the host by a balloon.
    Offline,
    /// Free.
    Free,
    /// There is no descriptor for the frame, or it cannot be read.
    Unknown,
}

/// One mapping of a frame in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapper {
    /// The process (of several that share an address space, the one with the lowest id).
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// The virtual address.
    pub virt: u64,
    /// The mapped area: a file's path, `[heap]`, `[stack]`; `None` for anonymous memory.
    pub area: Option<Arc<str>>,
    /// How many other mappings the same frame has.
    pub others: u32,
}

impl PageOwner {
    /// A short name for the kind of owner, the same for all kernels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kernel { .. } => "kernel",
            Self::PerCpu { .. } => "per-cpu",
            Self::Module { .. } => "module",
            Self::PageTable { .. } => "page-table",
            Self::KernelStack { .. } => "kernel-stack",
            Self::Process(_) => "process",
            Self::Anonymous => "anonymous",
            Self::PageCache { .. } => "file",
            Self::Slab { .. } => "slab",
            Self::PageDescriptors => "page-descriptors",
            Self::Vmalloc { .. } => "vmalloc",
            Self::Reserved { .. } => "reserved",
            Self::Allocated { .. } => "allocated",
            Self::Offline => "offline",
            Self::Free => "free",
            Self::Unknown => "unknown",
        }
    }

    /// The name under which frames are added up: without addresses and offsets, so that all frames of one file, of one
    /// area of a process or of one cache have the same name.
    #[must_use]
    pub fn group(&self) -> String {
        match self {
            Self::Kernel { part, symbol: Some(symbol), .. } if *part != "text" => {
                format!("kernel {part} from {symbol}")
            }
            Self::Kernel { part, .. } => format!("kernel {part}"),
            Self::PerCpu { cpu, .. } => format!("variables of CPU {cpu}"),
            Self::Module { name, section: Some(section), .. } => format!("module {name} {section}"),
            Self::Module { name, .. } => format!("module {name}"),
            Self::PageTable { pid: Some(pid), .. } => format!("page tables of process {pid}"),
            Self::PageTable { level: 0, .. } => "page tables that no tree leads to".to_owned(),
            Self::PageTable { .. } => "page tables of the kernel".to_owned(),
            Self::Process(Mapper { pid, comm, area: Some(area), .. }) => {
                format!("process {pid} ({comm}) {area}")
            }
            Self::Process(Mapper { pid, comm, .. }) => format!("process {pid} ({comm})"),
            Self::PageCache { file: Some(file), .. } => format!("file {file}"),
            Self::PageCache { inode, .. } => format!("file with inode {inode}"),
            Self::Slab { cache, .. } => format!("slab {cache}"),
            Self::Vmalloc { caller: Some(caller), .. } => format!("mapped memory of {caller}"),
            Self::Vmalloc { caller: None, .. } => "mapped memory".to_owned(),
            _ => self.to_string(),
        }
    }

    /// Whether the frame's use is known: it is free, or its owner has a name.
    #[must_use]
    pub fn is_named(&self) -> bool {
        !matches!(
            self,
            Self::Unknown
                | Self::Allocated { referrer: None }
                | Self::Reserved { resource: None, referrer: None }
        )
    }
}

impl fmt::Display for PageOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { part, symbol: Some(symbol), offset, .. } => {
                write!(f, "kernel {part} {symbol}+{offset:#x}")
            }
            Self::Kernel { part, virt, symbol: None, .. } => write!(f, "kernel {part} {virt:#018x}"),
            Self::PerCpu { cpu, symbol: Some(symbol), .. } => {
                write!(f, "variables of CPU {cpu} from {symbol}")
            }
            Self::PerCpu { cpu, offset, symbol: None } => {
                write!(f, "variables of CPU {cpu} from {offset:#x}")
            }
            Self::Module { name, section: Some(section), offset } => {
                write!(f, "module {name} {section}+{offset:#x}")
            }
            Self::Module { name, section: None, offset } => write!(f, "module {name}+{offset:#x}"),
            Self::PageTable { level: 0, .. } => f.write_str("page table that no tree leads to"),
            Self::PageTable { pid: Some(pid), level, virt } => {
                write!(f, "page table of process {pid}, level {level}, for {virt:#018x}")
            }
            Self::PageTable { pid: None, level, virt } => {
                write!(f, "page table of the kernel, level {level}, for {virt:#018x}")
            }
            Self::KernelStack { pid, comm } => write!(f, "kernel stack of {pid} ({comm})"),
            Self::Process(mapper) => write!(f, "{mapper}"),
            Self::Anonymous => f.write_str("anonymous memory that nobody maps"),
            Self::PageCache { file: Some(file), page, .. } => write!(f, "file {file}, page {page}"),
            Self::PageCache { file: None, inode, page, .. } => {
                write!(f, "file with inode {inode}, page {page}")
            }
            Self::Slab { cache, objects: Some((first, last)) } if first == last => {
                write!(f, "slab {cache}, object {first}")
            }
            Self::Slab { cache, objects: Some((first, last)) } => {
                write!(f, "slab {cache}, objects {first} to {last}")
            }
            Self::Slab { cache, objects: None } => write!(f, "slab {cache}"),
            Self::PageDescriptors => f.write_str("page descriptors"),
            Self::Vmalloc { caller: Some(caller), offset } => {
                write!(f, "mapped memory of {caller}, from {offset:#x}")
            }
            Self::Vmalloc { caller: None, offset } => write!(f, "mapped memory, from {offset:#x}"),
            Self::Reserved { resource: Some(resource), .. } => write!(f, "reserved: {resource}"),
            Self::Reserved { referrer: Some(referrer), .. } => write!(f, "reserved at boot for {referrer}"),
            Self::Reserved { .. } => f.write_str("reserved at boot"),
            Self::Allocated { referrer: Some(referrer) } => {
                write!(f, "kernel memory that {referrer} leads to")
            }
            Self::Allocated { referrer: None } => f.write_str("kernel memory"),
            Self::Offline => f.write_str("given back to the host"),
            Self::Free => f.write_str("free"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, comm, virt, area, others } = self;
        write!(f, "process {pid} ({comm}) at {virt:#x}")?;
        if let Some(area) = area {
            write!(f, " {area}")?;
        }
        if *others > 0 {
            write!(f, ", shared by {}", u64::from(*others) + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_said_in_words() {
        let mapper =
            Mapper { pid: 7, comm: "sh".into(), virt: 0x40_0000, area: Some("[heap]".into()), others: 2 };
        assert_eq!(PageOwner::Process(mapper).to_string(), "process 7 (sh) at 0x400000 [heap], shared by 3");
        let table = PageOwner::PageTable { pid: None, level: 4, virt: 1 << 63 };
        assert_eq!(table.to_string(), "page table of the kernel, level 4, for 0x8000000000000000");
        let file = PageOwner::PageCache { file: None, inode: 5, page: 2, mappers: 0 };
        assert_eq!(file.to_string(), "file with inode 5, page 2");
        let slab = PageOwner::Slab { cache: "dentry".into(), objects: Some((0, 20)) };
        assert_eq!(slab.to_string(), "slab dentry, objects 0 to 20");
        assert_eq!(slab.group(), "slab dentry");
        assert!(slab.is_named() && !PageOwner::Allocated { referrer: None }.is_named());
    }
}
