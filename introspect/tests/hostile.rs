//! Memories without a guest, truncated and damaged ones: always an answer, in bounded time, and never a panic.
#![expect(clippy::unwrap_used, reason = "a test")]

mod live;

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use live::{cache, registers};
use proptest::prelude::*;
use retrovisor_guest::{
    Gfn, MemoryError, MemoryLayout, MemoryView, Page, PageToken, VcpuRegisters, ZERO_PAGE, is_zero,
};
use retrovisor_introspect::{ChangedFrame, Introspector, OwnerMap, OwnerReader, RawDump, compare};

const LONGEST: Duration = Duration::from_secs(20);

/// A memory computed by a function.
struct Made<F: Fn(Gfn) -> Page> {
    layout: MemoryLayout,
    page: F,
}

impl<F: Fn(Gfn) -> Page> MemoryView for Made<F> {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        self.layout.index(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        *into = (self.page)(gfn);
        Ok(())
    }
}

fn made(pages: u64, page: impl Fn(Gfn) -> Page) -> impl MemoryView {
    Made { layout: MemoryLayout::flat(pages << 12).unwrap(), page }
}

fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ mixed >> 31
}

fn long_mode(cr3: u64) -> VcpuRegisters {
    VcpuRegisters { cr0: 1 << 31 | 1, efer: 1 << 10 | 1 << 8, cr3, ..VcpuRegisters::default() }
}

/// Reads everything that can be read from a memory.
fn ask(introspector: &mut Introspector, view: &dyn MemoryView, vcpus: &[VcpuRegisters]) -> bool {
    let start = Instant::now();
    let observation = introspector.observe(view, vcpus);
    assert_eq!(observation.registers, vcpus);
    assert_eq!(observation.memory.pages, view.layout().pages());
    assert!(
        observation.linux.is_some() || observation.reason.as_ref().is_some_and(|reason| !reason.is_empty())
    );
    assert!(!observation.tables().is_empty());
    if let Some(kernel) = introspector.kernel() {
        let mut reader = OwnerReader::new();
        let old = reader.read(&kernel, view, &observation);
        let mut map: OwnerMap = reader.read(&kernel, view, &observation);
        map.trace_allocations(view);
        let mut changed = Vec::new();
        for gfn in view.layout().gfns() {
            assert!(!map.explain(gfn).to_string().is_empty());
            assert!(map.mappers(gfn, 4).len() <= 4);
            changed.push(ChangedFrame { gfn, since: 1 });
        }
        // The same memory twice: nothing differs, but every frame is compared.
        let difference = compare(&kernel, (view, &old), (view, &map), &changed);
        assert!(difference.objects.is_empty() && difference.owners.len() <= 41);
    }
    assert!(start.elapsed() < LONGEST, "it took {:?}", start.elapsed());
    observation.linux.is_some()
}

#[test]
fn what_is_no_linux_gives_registers_statistics_and_a_reason() {
    let zeros = made(4096, |_| ZERO_PAGE);
    let noise = made(4096, |gfn| {
        let (mut page, mut state) = (ZERO_PAGE, gfn.0);
        page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = next_random(&mut state).to_le_bytes());
        page
    });
    // Page tables in which every entry leads back to a table.
    let circle = made(4096, |_| {
        let mut page = ZERO_PAGE;
        page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = 0x1003_u64.to_le_bytes());
        page
    });
    // A bare program: one gibibyte mapped one to one, code, nothing else.
    let bare = made(4096, |gfn| {
        let mut page = ZERO_PAGE;
        match gfn.0 {
            1 => page[..8].copy_from_slice(&0x2003_u64.to_le_bytes()),
            2 => page[..8].copy_from_slice(&0x83_u64.to_le_bytes()),
            256 => page.fill(0xf4),
            _ => {}
        }
        page
    });
    for (name, view) in
        [("zeros", &zeros as &dyn MemoryView), ("noise", &noise), ("circle", &circle), ("bare", &bare)]
    {
        for vcpus in
            [vec![], vec![VcpuRegisters::default()], vec![long_mode(0x1000)], vec![long_mode(u64::MAX)]]
        {
            let mut introspector = Introspector::new();
            assert!(!ask(&mut introspector, view, &vcpus), "{name} is no Linux");
        }
    }
}

/// A real memory of which only the frames that are not zero are stored.
struct Held {
    layout: MemoryLayout,
    pages: Vec<Option<Box<Page>>>,
    registers: Vec<VcpuRegisters>,
}

/// A memory that an earlier test has put in the cache.
fn held() -> Option<&'static Held> {
    static HELD: OnceLock<Option<Held>> = OnceLock::new();
    let read = || {
        let dumps: PathBuf = cache()?.join("dumps");
        let folder = ["bookworm-cloud-small", "bullseye-cloud-small", "sid-cloud-small"]
            .iter()
            .map(|name| dumps.join(name))
            .find(|folder| folder.join("memory").is_file() && folder.join("registers").is_file())?;
        let dump = RawDump::open(&folder.join("memory")).ok()?;
        let registers = registers::parse(&std::fs::read_to_string(folder.join("registers")).ok()?);
        let read = |gfn| {
            let mut page = ZERO_PAGE;
            dump.read_page(gfn, &mut page).unwrap();
            (!is_zero(&page)).then(|| Box::new(page))
        };
        let pages = dump.layout().gfns().map(read).collect();
        Some(Held { layout: dump.layout().clone(), pages, registers })
    };
    let held = HELD.get_or_init(read).as_ref();
    if held.is_none() {
        eprintln!(
            "SKIPPED: no dump of a guest in the cache: the tests of the kernels (--test word) leave some"
        );
    }
    held
}

/// The stored memory with some words changed, consistently from read to read.
struct Mutated {
    held: &'static Held,
    seed: u64,
    /// One of this many frames is changed.
    odds: u64,
    /// The first frame that is missing.
    end: u64,
}

impl MemoryView for Mutated {
    fn layout(&self) -> &MemoryLayout {
        &self.held.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let page = usize::try_from(gfn.0).ok().and_then(|at| self.held.pages.get(at));
        let page = page.ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        *into = if gfn.0 < self.end { page.as_ref().map_or(ZERO_PAGE, |page| **page) } else { ZERO_PAGE };
        let mut random = self.seed ^ gfn.0 << 20;
        if !next_random(&mut random).is_multiple_of(self.odds) {
            return Ok(());
        }
        for _ in 0..=next_random(&mut random) % 16 {
            let mut place = || usize::try_from(next_random(&mut random) % 512 * 8).unwrap();
            let (at, from) = (place(), place());
            let old = u64::from_le_bytes(*into[at..].first_chunk().unwrap());
            let word = match next_random(&mut random) % 8 {
                0 => 0,
                1 => u64::MAX,
                2 => next_random(&mut random),
                3 => u64::from_le_bytes(*into[from..].first_chunk().unwrap()),
                4 => old ^ 1 << (next_random(&mut random) % 64),
                5 => old.wrapping_add(8),
                6 => old | 1 << 63,
                _ => old.wrapping_mul(3),
            };
            into[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        Ok(())
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        Some(PageToken(gfn.0 | (self.seed & 0xffff) << 40))
    }
}

#[test]
fn half_of_a_guest_is_read_as_far_as_it_goes() {
    let Some(held) = held() else { return };
    let pages = held.layout.pages();
    for eighths in 1..8 {
        let view = Mutated { held, seed: 1, odds: u64::MAX, end: pages * eighths / 8 };
        for vcpus in [&held.registers[..], &[]] {
            ask(&mut Introspector::new(), &view, vcpus);
        }
    }
    let whole = Mutated { held, seed: 1, odds: u64::MAX, end: pages };
    assert!(ask(&mut Introspector::new(), &whole, &held.registers), "the whole is a Linux guest");
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn damaged_guests_are_survived(seed: u64, odds in prop::sample::select(vec![2_u64, 8, 64, 512]), fresh: bool) {
        if let Some(held) = held() {
            let view = Mutated { held, seed, odds, end: u64::MAX };
            let mut introspector = Introspector::new();
            if !fresh {
                // The kernel is found in a healthy memory and then read in a damaged one: structures are damaged,
                // symbols are not.
                let whole = Mutated { held, seed: 0, odds: u64::MAX, end: u64::MAX };
                introspector.observe(&whole, &held.registers);
            }
            ask(&mut introspector, &view, &held.registers);
        }
    }
}
