mod parts;

use std::sync::Arc;

use retrovisor_guest::{Gpa, MemoryView, VcpuRegisters};

use self::parts::read_image;
use crate::{
    Error,
    btf::Types,
    fact::Task,
    image::ImageRange,
    library::{KernelLibrary, Loading},
    linux::tasks::Tasks,
    pages::Pages,
    paging::AddressSpace,
    probe::Probe,
    reader::Reader,
    symbols::{Place, Symbols},
    vmcoreinfo::{Traces, VmcoreInfo},
};

/// A Linux kernel found in a guest's memory: its page tables, symbols and types.
///
/// Valid for as long as that kernel runs; [`Kernel::is_still_there`] checks a later memory.
#[derive(Clone)]
pub struct Kernel {
    space: AddressSpace,
    image: ImageRange,
    symbols: Arc<Symbols>,
    types: Option<Arc<Types>>,
    release: String,
    banner: String,
    /// Where the banner is, for [`Kernel::is_still_there`].
    banner_at: u64,
}

/// The address of `_text` without KASLR.
const LINKED_TEXT: u64 = 0xffff_ffff_8100_0000;
const BANNER_MAX: usize = 512;

impl Kernel {
    /// Finds the kernel from the vCPUs' page tables. Without registers (a raw dump), from its VMCOREINFO note, or by
    /// searching all of memory for its top page table. Page tables, symbols, banner and types must be consistent with
    /// each other. When registers are given and lead to no kernel, memory is not searched, since it may still hold the
    /// kernel of an earlier boot.
    pub fn find(view: &dyn MemoryView, vcpus: &[VcpuRegisters]) -> Result<Self, Error> {
        Self::find_in(&Pages::new(view), vcpus, None)
    }

    /// Like [`Self::find`]. Symbols and types come from the library if it has them; otherwise they are added to it.
    pub fn find_with(
        view: &dyn MemoryView,
        vcpus: &[VcpuRegisters],
        library: &KernelLibrary,
    ) -> Result<Self, Error> {
        Self::find_in(&Pages::new(view), vcpus, Some((library, Loading::Whole)))
    }

    /// Finds the kernel and reads its tasks, like [`Self::tasks`]. Only the needed parts of a library entry are read:
    /// the fastest way to the tasks of one memory.
    pub fn find_tasks(
        view: &dyn MemoryView,
        vcpus: &[VcpuRegisters],
        library: &KernelLibrary,
    ) -> Result<Vec<Task>, Error> {
        let pages = Pages::new(view);
        let kernel = Self::find_in(&pages, vcpus, Some((library, Loading::Lazy)))?;
        let tasks = kernel.tasks_in(&pages);
        if kernel.symbols.is_damaged() {
            // Checks the complete entry and replaces it.
            return Ok(Self::find_with(view, vcpus, library)?.tasks_in(&pages));
        }
        Ok(tasks)
    }

    pub(crate) fn find_in(
        pages: &Pages,
        vcpus: &[VcpuRegisters],
        library: Option<(&KernelLibrary, Loading)>,
    ) -> Result<Self, Error> {
        let mut spaces: Vec<AddressSpace> = Vec::new();
        for space in vcpus.iter().filter_map(AddressSpace::of) {
            // Under page-table isolation the root with bit 12 set is the user's half of a pair.
            for root in [space.root, Gpa(space.root.0 & !0x1000)] {
                let space = AddressSpace { root, ..space };
                if !spaces.contains(&space) {
                    spaces.push(space);
                }
            }
        }
        let mut reason =
            "no vCPU runs in long mode: the guest is in its firmware or has not started".to_owned();
        for space in spaces {
            match Self::at(pages, space, None, library) {
                Ok(kernel) => return Ok(kernel),
                Err(why) => reason = format!("the page tables at {} {why}", space.root),
            }
        }
        if !vcpus.is_empty() {
            return Err(Error::NoKernel(reason));
        }
        let traces = Traces::scan(pages);
        for note in &traces.notes {
            if let Some(kernel) =
                note.address_space().and_then(|space| Self::at(pages, space, Some(note), library).ok())
            {
                return Ok(kernel);
            }
        }
        for root in &traces.roots {
            for levels in [5, 4] {
                if let Ok(kernel) = Self::at(pages, AddressSpace { root: *root, levels }, None, library) {
                    return Ok(kernel);
                }
            }
        }
        Err(Error::NoKernel(format!(
            "no registers were given, and of {} VMCOREINFO notes and {} possible page-table roots in memory none leads to a kernel",
            traces.notes.len(),
            traces.roots.len()
        )))
    }

    /// The kernel that these page tables map, or the reason why there is none.
    fn at(
        pages: &Pages,
        space: AddressSpace,
        note: Option<&VmcoreInfo>,
        library: Option<(&KernelLibrary, Loading)>,
    ) -> Result<Self, String> {
        let image_range = ImageRange::find(pages, space).ok_or("map no kernel image")?;
        let kept = library.and_then(|(library, loading)| library.find(pages, &image_range, loading));
        if let Some((symbols, types)) = kept {
            // Detects a damaged library entry in the parts that are read here.
            if let Ok(kernel) = Self::of(pages, space, note, image_range, (symbols, Some(types))) {
                return Ok(kernel);
            }
        }
        let (symbols, types, extents) = read_image(pages, space, note, &image_range)?;
        let kernel = Self::of(pages, space, note, image_range, (symbols, types))?;
        if let (Some((library, _)), Some(types), Some(extents)) = (library, &kernel.types, extents) {
            library.put(pages, &image_range, &extents, &kernel.symbols, types);
        }
        Ok(kernel)
    }

    /// The kernel with these symbols and types, if page tables, banner, note and types are consistent.
    fn of(
        pages: &Pages,
        space: AddressSpace,
        note: Option<&VmcoreInfo>,
        image_range: ImageRange,
        (symbols, types): (Symbols, Option<Types>),
    ) -> Result<Self, String> {
        let text = symbols.address("_text").or_else(|| symbols.address("_stext"));
        let start = text
            .filter(|text| image_range.contains(*text))
            .ok_or("map an image whose symbols are elsewhere")?;
        let image_range = ImageRange {
            virt: start,
            gpa: Gpa(image_range.gpa.0 + (start - image_range.virt)),
            bytes: image_range.bytes - (start - image_range.virt),
        };
        let (banner_at, banner) = symbols
            .address("linux_banner")
            .and_then(|at| Some((at, Reader::new(pages, space).string(at, BANNER_MAX)?)))
            .filter(|(_, banner)| banner.starts_with("Linux version "))
            .ok_or("map an image without a banner where its symbols say")?;
        let release = banner.split(' ').nth(2).unwrap_or_default().to_owned();
        if note.and_then(VmcoreInfo::release).is_some_and(|reported| reported != release) {
            return Err("map another kernel than the VMCOREINFO note names".into());
        }
        if types.is_none() {
            tracing::warn!(release, "this kernel has no readable BTF: only symbols and syscalls can be read");
        }
        let mut kernel = Self {
            space,
            image: image_range,
            symbols: Arc::new(symbols),
            types: types.map(Arc::new),
            release,
            banner: banner.trim_end().to_owned(),
            banner_at,
        };
        // A process's page tables are freed when it exits; the kernel's own stay.
        let own = kernel.symbol("init_top_pgt").or_else(|| kernel.symbol("swapper_pg_dir"));
        if let Some(root) = own.and_then(|own| kernel.image_gpa(own)) {
            let own = AddressSpace { root, ..space };
            if own
                .translate(pages, banner_at)
                .is_some_and(|gpa| Some(gpa) == space.translate(pages, banner_at))
            {
                kernel.space = own;
            }
        }
        Ok(kernel)
    }

    /// The tasks of a memory in which this kernel runs, and nothing else: processes and threads, without the fields
    /// that need the processes' own memory (arguments, executables) or the unwind table. Empty when they cannot be
    /// read.
    #[must_use]
    pub fn tasks(&self, view: &dyn MemoryView) -> Vec<Task> {
        self.tasks_in(&Pages::new(view))
    }

    fn tasks_in(&self, pages: &Pages) -> Vec<Task> {
        let reader = Reader::new(pages, self.space);
        let tasks = Probe::new(self, &reader).and_then(|probe| Tasks::read(&probe));
        tasks.map(|tasks| tasks.all).unwrap_or_default()
    }

    /// Whether this kernel also runs in another memory (of the same guest, at another time).
    pub fn is_still_there(&self, view: &dyn MemoryView) -> bool {
        self.is_still_in(&Pages::new(view))
    }

    pub(crate) fn is_still_in(&self, pages: &Pages) -> bool {
        let reader = Reader::new(pages, self.space);
        reader.translate(self.banner_at) == self.image_gpa(self.banner_at)
            && reader
                .string(self.banner_at, BANNER_MAX)
                .is_some_and(|banner| banner.trim_end() == self.banner)
    }

    /// The address of a symbol.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.address(name)
    }

    /// The symbol of the kernel's image that contains an address, and the offset in it.
    #[must_use]
    pub fn symbolize(&self, address: u64) -> Option<(String, u64)> {
        let place = self.place(address)?;
        Some((place.name.to_owned(), place.offset))
    }

    /// Like [`Self::symbolize`], as `name` or `name+0x1c`.
    #[must_use]
    pub fn label(&self, address: u64) -> Option<String> {
        let Place { name, offset, .. } = self.place(address)?;
        Some(if offset == 0 { name.to_owned() } else { format!("{name}+{offset:#x}") })
    }

    pub(crate) fn place(&self, address: u64) -> Option<Place<'_>> {
        self.image.contains(address).then(|| self.symbols.place(address))?
    }

    /// The symbols in a range of addresses, ascending: address and name.
    pub fn symbols_within(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, &str)> {
        self.symbols.within(range)
    }

    pub(crate) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Number of symbols.
    #[must_use]
    pub fn symbol_count(&self) -> usize {
        self.symbols.len()
    }

    /// Number of types; 0 without BTF.
    #[must_use]
    pub fn type_count(&self) -> usize {
        self.types.as_ref().map_or(0, |types| types.len())
    }

    /// A type of the kernel by number, from 1 to [`Self::type_count`]; typedefs and qualifiers are followed.
    #[must_use]
    pub fn shape(&self, id: u32) -> Option<crate::Shape> {
        self.types()?.shape(id)
    }

    /// The number of the type to which a typedef or a qualified type resolves.
    #[must_use]
    pub fn resolved_type(&self, id: u32) -> Option<u32> {
        self.types()?.resolved(id)
    }

    pub(crate) fn types(&self) -> Option<&Types> {
        self.types.as_deref()
    }

    /// `uname -r`.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The line of /proc/version.
    #[must_use]
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// The kernel's own page tables.
    #[must_use]
    pub fn address_space(&self) -> AddressSpace {
        self.space
    }

    /// KASLR: the address of `_text` minus its linked address.
    #[must_use]
    pub fn virtual_slide(&self) -> u64 {
        self.image.virt.wrapping_sub(LINKED_TEXT)
    }

    /// The kernel's `phys_base`; wraps below zero.
    #[must_use]
    pub fn physical_base(&self) -> u64 {
        self.image.gpa.0.wrapping_sub(self.image.virt - crate::image::KERNEL_MAP)
    }

    /// The addresses of the kernel's code.
    #[must_use]
    pub fn text(&self) -> std::ops::Range<u64> {
        let start = self.symbol("_stext").unwrap_or(self.image.virt);
        let end = self.symbol("_etext").filter(|end| *end > start && *end - start <= self.image.bytes);
        start..end.unwrap_or(start)
    }

    pub(crate) fn image(&self) -> &ImageRange {
        &self.image
    }

    /// The physical address of a place in the image, without a page-table walk.
    pub(crate) fn image_gpa(&self, virt: u64) -> Option<Gpa> {
        self.image.contains(virt).then(|| self.image.gpa.checked_add(virt - self.image.virt))?
    }

    /// The physical address of a kernel-virtual one.
    pub fn translate(&self, view: &dyn MemoryView, virt: u64) -> Result<Gpa, Error> {
        self.space.translate(&Pages::new(view), virt).ok_or(Error::Unmapped { virt })
    }

    /// Reads from a kernel-virtual address into `into`.
    pub fn read_virtual(&self, view: &dyn MemoryView, virt: u64, into: &mut [u8]) -> Result<(), Error> {
        let pages = Pages::new(view);
        Reader::new(&pages, self.space).read(virt, into).ok_or(Error::Unmapped { virt })
    }

    /// The 64-bit word at a symbol.
    pub fn word(&self, view: &dyn MemoryView, symbol: &str) -> Result<u64, Error> {
        let virt = self.symbol(symbol).ok_or_else(|| Error::NoSymbol(symbol.to_owned()))?;
        let mut word = [0; 8];
        self.read_virtual(view, virt, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("release", &self.release)
            .field("space", &self.space)
            .field("image", &self.image)
            .field("symbols", &self.symbol_count())
            .field("types", &self.type_count())
            .finish_non_exhaustive()
    }
}
