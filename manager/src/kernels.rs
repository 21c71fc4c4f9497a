use retrovisor_introspect::KernelLibrary;
use retrovisor_snapshot::Store;

/// The store's folder for it. It is no part of the history: what is not there is read of memory again.
const FOLDER: &str = "kernels";

/// Symbols and types of the kernels that were met in this store; only read where the store is only read.
pub fn kernel_library(store: &Store) -> KernelLibrary {
    let folder = store.dir().join(FOLDER);
    if store.is_writable() { KernelLibrary::new(&folder) } else { KernelLibrary::read_only(&folder) }
}
