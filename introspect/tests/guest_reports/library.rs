use std::{fs, path::Path};

use retrovisor_guest::{MemoryView, VcpuRegisters};
use retrovisor_introspect::{Introspector, Kernel, KernelLibrary, Observation};

use crate::dump::Dump;

/// The result with a library is the same as without; the next kernel of this build uses the same entry, whatever its
/// KASLR slide.
pub(crate) fn changes_nothing(dump: &Dump, without: &Observation, folder: &Path) {
    let library = KernelLibrary::new(folder);
    let entries = || {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.map(|file| file.path()).collect::<Vec<_>>()
    };
    let known = entries();
    // The first observation of a build writes the entry; all others read it.
    for round in 0..3 {
        let library = if round == 2 { KernelLibrary::read_only(folder) } else { library.clone() };
        let observation = Introspector::with_library(library).observe(&dump.memory, &dump.registers);
        // The number of frames read is not a fact about the guest.
        for (with, without) in observation.tables().iter().zip(without.tables()) {
            assert!(with.schema.table == "fact_memory" || with.rows == without.rows, "{}", with.schema.table);
        }
        assert_eq!(entries().len(), 1, "one build, one entry");
    }
    assert!(known.is_empty() || known == entries());
    let entry = fs::read(&entries()[0]).unwrap();
    agree(&dump.memory, &dump.registers, &library);
    // A damaged block is detected where it is used, and the entry is replaced.
    for at in (0..entry.len()).step_by(entry.len() / 5) {
        let mut damaged = entry.clone();
        damaged[at..].iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
        fs::write(&entries()[0], &damaged).unwrap();
        let library = KernelLibrary::new(folder);
        let tasks = Kernel::find_tasks(&dump.memory, &dump.registers, &library).unwrap();
        assert!(
            tasks == Kernel::find_with(&dump.memory, &dump.registers, &library).unwrap().tasks(&dump.memory)
        );
        // The bytes differ: the entry records the KASLR slide of the kernel from which it was made.
        let renewed = fs::read(&entries()[0]).unwrap();
        assert!(renewed.len() == entry.len() && renewed != damaged);
    }
    eprintln!("{} bytes for this build", entry.len());
}

fn agree(memory: &dyn MemoryView, registers: &[VcpuRegisters], library: &KernelLibrary) {
    let kernel = Kernel::find(memory, registers).unwrap();
    let tasks = Kernel::find_tasks(memory, registers, library).unwrap();
    assert!(tasks.len() > 10 && tasks == kernel.tasks(memory));
    let kept = Kernel::find_with(memory, registers, library).unwrap();
    assert_eq!(format!("{kept:?}"), format!("{kernel:?}"));
    assert!(kept.symbols_within(0..u64::MAX).eq(kernel.symbols_within(0..u64::MAX)));
    assert!((0..=kernel.type_count() as u32 + 1).all(|id| kept.shape(id) == kernel.shape(id)));
}
