use std::{cell::RefCell, num::NonZero, sync::Arc};

use retrovisor_guest::{MemoryView, VcpuRegisters};

use crate::{
    Kernel, KernelLibrary,
    boot::Boot,
    fact::MemoryStatistics,
    library::Loading,
    observation::Observation,
    pages::{FrameCache, Pages},
    reader::Reader,
};

/// Reads one guest repeatedly, and keeps state between observations: kernels with their symbols and types, the
/// references from the first observation of each boot, and frames by their page token.
///
/// All views given to one introspector must be of one guest and use the same page tokens (one store).
pub struct Introspector {
    /// The known boots, the most recently used first.
    boots: Vec<Boot>,
    cache: RefCell<FrameCache>,
    library: Option<KernelLibrary>,
}

/// Boots that are kept: a rollback across a reboot returns to an earlier boot.
const BOOTS_MAX: usize = 3;
/// Frames kept between observations: 32 MiB.
const CACHED_FRAMES: NonZero<usize> = NonZero::new(8192).unwrap();

impl Introspector {
    /// An introspector without boots.
    #[must_use]
    pub fn new() -> Self {
        Self { boots: Vec::new(), cache: RefCell::new(FrameCache::new(CACHED_FRAMES)), library: None }
    }

    /// An introspector that takes the symbols and types of known kernels from a library, and adds those of new ones to
    /// it.
    #[must_use]
    pub fn with_library(library: KernelLibrary) -> Self {
        Self { library: Some(library), ..Self::new() }
    }

    /// Reads a guest. If no Linux is found, or nothing can be read, the observation has the registers, the page
    /// statistics and the reason.
    pub fn observe(&mut self, view: &dyn MemoryView, vcpus: &[VcpuRegisters]) -> Observation {
        let pages = Pages::with_cache(view, &self.cache);
        let mut memory = page_statistics(view);
        let (mut linux, mut reason) = (None, None);
        match select_boot(&mut self.boots, &pages, vcpus, self.library.as_ref()) {
            Ok(boot) => {
                let reader = Reader::new(&pages, boot.kernel.address_space());
                linux = Some(boot.observe(&reader, vcpus, &mut memory));
                if boot.kernel.type_count() == 0 {
                    reason = Some(
                        "the kernel has no BTF: only its symbols and system calls can be read".to_owned(),
                    );
                }
            }
            Err(error) => reason = Some(error.to_string()),
        }
        memory.pages_read = pages.read_count();
        memory.pages_unreadable = pages.unreadable_count();
        Observation { linux, reason, memory, registers: vcpus.to_vec() }
    }

    /// Takes the references from an earlier checkpoint. A new introspector, for example after a restart, gets the same
    /// references as before from the first stored checkpoint of the boot.
    pub fn learn(&mut self, view: &dyn MemoryView, vcpus: &[VcpuRegisters]) {
        self.observe(view, vcpus);
        self.forget_last();
    }

    /// Must be called when the next observation does not follow the last one: the guest was rolled back, or
    /// observations were skipped. The references of a boot stay; comparisons between consecutive observations start
    /// again.
    pub fn forget_last(&mut self) {
        self.boots.iter_mut().for_each(Boot::forget_last);
    }

    /// The kernel of the last observation that had one.
    #[must_use]
    pub fn kernel(&self) -> Option<Arc<Kernel>> {
        self.boots.first().map(|boot| Arc::clone(&boot.kernel))
    }

    /// The symbols of the modules in the last observation: module, address, name.
    pub fn module_symbols(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.boots.first().into_iter().flat_map(|boot| boot.module_symbols.all())
    }
}

impl Default for Introspector {
    fn default() -> Self {
        Self::new()
    }
}

/// Moves the boot of a memory to the front; a new boot is found and added.
fn select_boot<'b>(
    boots: &'b mut Vec<Boot>,
    pages: &Pages,
    vcpus: &[VcpuRegisters],
    library: Option<&KernelLibrary>,
) -> Result<&'b mut Boot, crate::Error> {
    // After a reset, the old kernel is in memory until it is overwritten. The vCPUs show whether a kernel runs.
    let running = vcpus.is_empty() || vcpus.iter().any(|vcpu| crate::AddressSpace::of(vcpu).is_some());
    let known =
        boots.iter().position(|boot| running && boot.is_in(&Reader::new(pages, boot.kernel.address_space())));
    let boot = if let Some(at) = known {
        boots.remove(at)
    } else {
        let library = library.map(|library| (library, Loading::Whole));
        let kernel = Arc::new(Kernel::find_in(pages, vcpus, library)?);
        let reader = Reader::new(pages, kernel.address_space());
        Boot::new(Arc::clone(&kernel), &reader)
    };
    boots.insert(0, boot);
    boots.truncate(BOOTS_MAX);
    // The branch above has just added one.
    boots.first_mut().ok_or_else(|| crate::Error::NoKernel("no boot is known".into()))
}

fn page_statistics(view: &dyn MemoryView) -> MemoryStatistics {
    let pages = view.layout().pages();
    let zero = view.layout().gfns().filter(|gfn| view.known_zero(*gfn)).count() as u64;
    let known = (zero > 0).then_some(zero);
    MemoryStatistics {
        pages,
        zero_pages: known,
        data_pages: known.map(|zero| pages - zero),
        ..MemoryStatistics::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Memory;

    #[test]
    fn a_guest_that_is_no_linux_gives_a_reason() {
        fn can_move_to_another_thread(_: &impl Send) {}
        let mut introspector = Introspector::new();
        can_move_to_another_thread(&introspector);
        let mut memory = Memory::new(64);
        for word in 0..4096 {
            memory.put_word(word * 8, word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        let long = VcpuRegisters { cr0: 1 << 31, efer: 1 << 10, cr3: 0x2000, ..VcpuRegisters::default() };
        for (vcpus, reason) in [
            (vec![], "no registers were given"),
            (vec![VcpuRegisters::default()], "long mode"),
            (vec![long], "the page tables at 0x"),
        ] {
            let observation = introspector.observe(&memory, &vcpus);
            assert!(observation.linux.is_none() && introspector.kernel().is_none());
            assert!(
                observation.reason.as_deref().is_some_and(|said| said.contains(reason)),
                "{observation:?}"
            );
            assert_eq!((observation.memory.pages, observation.registers), (64, vcpus));
        }
    }
}
