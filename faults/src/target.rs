use retrovisor_guest::{Gfn, MemoryView, VcpuRegisters};
use retrovisor_introspect::{Introspector, Kernel, KernelLibrary, OwnerReader};

use crate::Error;

/// The checkpoint for which a fault is planned.
pub struct Target<'v> {
    /// Its memory.
    pub view: &'v dyn MemoryView,
    /// Its vCPUs' registers.
    pub registers: &'v [VcpuRegisters],
    /// The library for symbols and types of kernels.
    pub library: Option<KernelLibrary>,
}

impl Target<'_> {
    /// The guest's kernel.
    pub fn kernel(&self) -> Result<Kernel, Error> {
        Ok(match &self.library {
            Some(library) => Kernel::find_with(self.view, self.registers, library)?,
            None => Kernel::find(self.view, self.registers)?,
        })
    }

    /// The owner of a frame, as text. Reads the kernel's page descriptors, which takes a while.
    #[must_use]
    pub fn owner(&self, gfn: Gfn) -> String {
        let mut introspector =
            self.library.clone().map_or_else(Introspector::new, Introspector::with_library);
        let observation = introspector.observe(self.view, self.registers);
        match introspector.kernel() {
            Some(kernel) => {
                OwnerReader::new().read(&kernel, self.view, &observation).explain(gfn).to_string()
            }
            None => "an unknown owner".to_owned(),
        }
    }
}
