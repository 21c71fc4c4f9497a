use retrovisor_guest::{Gfn, MemoryView, VcpuRegisters};
use retrovisor_introspect::{Introspector, Kernel, KernelLibrary, OwnerReader};

use crate::Error;

/// The checkpoint that a fault is planned on.
pub struct Target<'v> {
    /// Its memory.
    pub view: &'v dyn MemoryView,
    /// Its vCPUs' registers.
    pub registers: &'v [VcpuRegisters],
    /// Where symbols and types of kernels are kept.
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

    /// Who has a frame, as text. Reads the kernel's page descriptors: this takes a while.
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
