use std::fs::FileTimes;

use proptest::prelude::*;
use retrovisor_guest::{Gpa, MemoryView, VcpuRegisters};

use super::*;
use crate::{
    Kernel, btf,
    image::KERNEL_MAP,
    kallsyms::sample::{Layout, VIRT, image_with},
    paging::AddressSpace,
    synthetic::Memory,
};

const ROOT: u64 = 0x1000;
const BANNER_AT: u64 = 5 * 16;
const TYPES_AT: u64 = 40 * 16;
const LAYOUTS: [Layout; 4] = [Layout::Before, Layout::After, Layout::OwnPlace, Layout::Packed];

/// A kernel of six megabytes: kallsyms, types, a banner. KASLR puts it at `virt` and `gpa`.
struct Guest {
    memory: Memory,
    virt: u64,
    gpa: u64,
}

impl Guest {
    fn new(layout: Layout, virt: u64, gpa: u64, name: &str) -> Self {
        let names = [(0, "T_text"), (5, "Dlinux_banner"), (40, "D__start_BTF"), (77, name)];
        let image = image_with(layout, virt, &names);
        let mut memory = Memory::new(4096);
        for part in (0..6 << 20).step_by(2 << 20) {
            memory.map(AddressSpace { root: Gpa(ROOT), levels: 4 }, virt + part, Gpa(gpa + part), 2);
        }
        memory.put(gpa, &image.bytes);
        memory.put(gpa + BANNER_AT, b"Linux version 6.1.0-test (somebody) #1\n\0");
        memory.put(gpa + TYPES_AT, &btf::sample::blob());
        Self { memory, virt, gpa }
    }

    fn plain(layout: Layout) -> Self {
        Self::new(layout, VIRT, 2 << 20, "Tsym77")
    }

    fn vcpus() -> [VcpuRegisters; 1] {
        [VcpuRegisters { cr0: 1 << 31, efer: 1 << 10, cr3: ROOT, ..VcpuRegisters::default() }]
    }

    fn find(&self, library: &KernelLibrary, loading: Loading) -> Option<(Symbols, Types)> {
        let pages = Pages::new(&self.memory);
        let image = ImageRange::find(&pages, AddressSpace { root: Gpa(ROOT), levels: 4 }).unwrap();
        library.find(&pages, &image, loading)
    }

    /// Checks that the kernel read from memory alone equals the one from the library.
    fn agrees(&self, library: &KernelLibrary) {
        let kernel = Kernel::find(&self.memory, &Self::vcpus()).unwrap();
        for loading in [Loading::Whole, Loading::Lazy] {
            let (symbols, types) = self.find(library, loading).unwrap();
            assert!(symbols.within(0..u64::MAX).eq(kernel.symbols_within(0..u64::MAX)));
            assert!(
                (0..400)
                    .all(|at| symbols.place(self.virt + at * 13)
                        == kernel.symbols().place(self.virt + at * 13))
            );
            assert_eq!(symbols.address("sym298"), Some(self.virt + 298 * 16));
            assert_eq!(types.field("outer_t", "d"), kernel.types().unwrap().field("outer_t", "d"));
            assert!((0..12).all(|id| types.shape(id) == kernel.shape(id)));
            assert_eq!(types.enumerator("BLUE"), Some(5));
            assert!(!symbols.is_damaged());
        }
        let again = Kernel::find_with(&self.memory, &Self::vcpus(), library).unwrap();
        assert_eq!(format!("{again:?}"), format!("{kernel:?}"));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// A library with one guest's kernel, and the path of the entry.
fn library_of(guest: &Guest) -> (tempfile::TempDir, KernelLibrary, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let library = KernelLibrary::new(folder.path());
    Kernel::find_with(&guest.memory, &Guest::vcpus(), &library).unwrap();
    let [path] = files(folder.path()).try_into().unwrap();
    (folder, library, path)
}

/// Makes every lookup in arbitrary tables: none may panic.
fn ask((symbols, types): &(Symbols, Types), virt: u64) {
    for name in ["_text", "linux_banner", "sym298", "nothing"] {
        symbols.address(name);
    }
    for address in [0, virt, virt + 4795, u64::MAX] {
        symbols.place(address);
        symbols.names_at(address).count();
    }
    symbols.within(0..u64::MAX).take(1000).count();
    for path in ["a", "b", "d", "name", "a.b"] {
        if let Some(field) = types.field("outer", path) {
            types.array(field);
            types.element(field, 3);
        }
    }
    for id in 0..12 {
        types.shape(id);
        types.leaves(id);
        types.value_name(id, 5);
    }
    types.enum_with("BLUE");
    types.variables();
}

#[test]
fn a_kernel_is_read_from_what_was_kept_wherever_kaslr_put_it() {
    for layout in LAYOUTS {
        let first = Guest::plain(layout);
        let (folder, library, _) = library_of(&first);
        first.agrees(&library);
        let slid = Guest::new(layout, KERNEL_MAP + (32 << 20), 4 << 20, "Tsym77");
        slid.agrees(&library);
        slid.agrees(&KernelLibrary::read_only(folder.path()));
        assert_eq!(files(folder.path()).len(), 1, "{layout:?}");
    }
}

#[test]
fn another_kernel_of_the_same_banner_finds_nothing() {
    for layout in LAYOUTS {
        let (folder, library, _) = library_of(&Guest::plain(layout));
        let other = Guest::new(layout, VIRT, 2 << 20, "Tsym66");
        assert!(
            other.find(&library, Loading::Whole).is_none() && other.find(&library, Loading::Lazy).is_none()
        );
        let kernel = Kernel::find_with(&other.memory, &Guest::vcpus(), &library).unwrap();
        assert!(kernel.symbol("sym77").is_none());
        assert_eq!(files(folder.path()).len(), 2);
        other.agrees(&library);
        Guest::plain(layout).agrees(&library);
    }
}

#[test]
fn a_library_that_is_only_read_stays_as_it_is() {
    let guest = Guest::plain(Layout::After);
    let folder = tempfile::tempdir().unwrap();
    let library = KernelLibrary::read_only(&folder.path().join("none"));
    Kernel::find_with(&guest.memory, &Guest::vcpus(), &library).unwrap();
    assert!(files(folder.path()).is_empty());
    let (folder, _, path) = library_of(&guest);
    fs::write(&path, b"damaged").unwrap();
    let library = KernelLibrary::read_only(folder.path());
    Kernel::find_with(&guest.memory, &Guest::vcpus(), &library).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"damaged");
}

#[test]
fn what_was_not_used_for_longest_goes() {
    let (folder, library, path) = library_of(&Guest::plain(Layout::After));
    let whole = fs::read(&path).unwrap();
    let long_ago = |path: &Path, hours| {
        let file = File::options().write(true).open(path).unwrap();
        let then = SystemTime::now() - Duration::from_hours(hours);
        file.set_times(FileTimes::new().set_modified(then)).unwrap();
    };
    for number in 1..ENTRIES_MAX as u64 {
        let other = folder.path().join(number.to_string()).with_extension(EXTENSION);
        fs::write(&other, &whole).unwrap();
        long_ago(&other, 100 + number);
    }
    let left = folder.path().join("77-0.tmp");
    fs::write(&left, b"half").unwrap();
    long_ago(&left, 2);
    long_ago(&path, 1000);
    // After this use another entry is the least recently used one.
    library.mark_used(&path);
    let other = Guest::new(Layout::After, VIRT, 2 << 20, "Tsym66");
    Kernel::find_with(&other.memory, &Guest::vcpus(), &library).unwrap();
    assert!(path.exists() && !left.exists());
    assert_eq!(files(folder.path()).len(), ENTRIES_MAX);
    assert!(!folder.path().join("15").with_extension(EXTENSION).exists());
}

#[test]
fn a_guest_that_changes_all_the_time_fills_no_folder() {
    let (folder, library, _) = library_of(&Guest::plain(Layout::After));
    for number in 0..PUTS_MAX + 4 {
        let guest = Guest::new(Layout::After, VIRT, 2 << 20, &format!("Tother{number}"));
        Kernel::find_with(&guest.memory, &Guest::vcpus(), &library).unwrap();
    }
    assert_eq!(files(folder.path()).len(), PUTS_MAX as usize);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_byte_that_decides_is_compared(at in any::<prop::sample::Index>(), part in 0..4, change in 1_u8..) {
        for layout in [Layout::Before, Layout::Packed] {
            let mut guest = Guest::plain(layout);
            let (_folder, library, path) = library_of(&guest);
            let extents = Header::read(&File::open(path).unwrap(), ENTRY_BYTES_MAX).unwrap().unwrap().extents();
            let (start, length) = match (part, extents.base_at) {
                (0, _) => extents.tables,
                (1, _) => extents.offsets,
                (2, _) | (_, None) => extents.types,
                (_, Some(at)) => (at, 8),
            };
            let at = guest.gpa + start + at.index(usize::try_from(length).unwrap()) as u64;
            let mut byte = [0];
            guest.memory.read(Gpa(at), &mut byte).unwrap();
            guest.memory.put(at, &[byte[0] ^ change]);
            prop_assert!(guest.find(&library, Loading::Whole).is_none());
            prop_assert!(guest.find(&library, Loading::Lazy).is_none());
        }
    }

    #[test]
    fn damaged_entries_are_made_again(at in any::<prop::sample::Index>(), change in any::<u8>(), lengthen in -9_i64..9) {
        let guest = Guest::plain(Layout::After);
        let (_folder, library, path) = library_of(&guest);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        bytes.resize(bytes.len().saturating_add_signed(isize::try_from(lengthen).unwrap()), 0);
        fs::write(&path, &bytes).unwrap();
        prop_assert_eq!(guest.find(&library, Loading::Whole).is_some(), bytes == whole);
        if let Some(found) = guest.find(&library, Loading::Lazy) {
            ask(&found, guest.virt);
            let right = found.0.within(0..u64::MAX).count() == 300;
            prop_assert!(right || found.0.is_damaged());
        }
        let tasks = Kernel::find_tasks(&guest.memory, &Guest::vcpus(), &library);
        prop_assert!(tasks.is_ok());
        Kernel::find_with(&guest.memory, &Guest::vcpus(), &library).unwrap();
        prop_assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn forged_entries_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), in_header: bool) {
        let guest = Guest::plain(Layout::After);
        let (_folder, library, path) = library_of(&guest);
        let mut bytes = fs::read(&path).unwrap();
        let head = entry::head_bytes(&bytes);
        for (at, byte) in changes {
            let at = if in_header { 32 + at.index(head - 32) } else { head + at.index(bytes.len() - head) };
            bytes[at] = byte;
        }
        entry::seal(&mut bytes, head, !in_header);
        fs::write(&path, &bytes).unwrap();
        for loading in [Loading::Whole, Loading::Lazy] {
            if let Some(found) = guest.find(&library, loading) {
                ask(&found, guest.virt);
            }
        }
        let _ = Kernel::find_with(&guest.memory, &Guest::vcpus(), &library);
        let _ = Kernel::find_tasks(&guest.memory, &Guest::vcpus(), &library);
    }
}
