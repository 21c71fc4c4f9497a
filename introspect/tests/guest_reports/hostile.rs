use std::time::{Duration, Instant};

use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page};
use retrovisor_introspect::{Introspector, OwnerMap};

use crate::dump::Dump;

/// A memory in which some words differ from the original, consistently from read to read.
struct Mutated<'v> {
    view: &'v dyn MemoryView,
    seed: u64,
}

fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ mixed >> 31
}

impl MemoryView for Mutated<'_> {
    fn layout(&self) -> &MemoryLayout {
        self.view.layout()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        self.view.read_page(gfn, into)?;
        let mut random = self.seed ^ gfn.0 << 20;
        let odds = [64, 8, 2][self.seed as usize % 3];
        if next_random(&mut random).is_multiple_of(odds) {
            for _ in 0..=next_random(&mut random) % 16 {
                let (at, from) = (
                    next_random(&mut random) as usize % 512 * 8,
                    next_random(&mut random) as usize % 512 * 8,
                );
                let word = match next_random(&mut random) % 6 {
                    0 => 0,
                    1 => u64::MAX,
                    2 => next_random(&mut random),
                    3 => u64::from_le_bytes(*into[from..].first_chunk().unwrap()),
                    4 => {
                        u64::from_le_bytes(*into[at..].first_chunk().unwrap())
                            ^ 1 << (next_random(&mut random) % 64)
                    }
                    _ => u64::from_le_bytes(*into[at..].first_chunk().unwrap()).wrapping_add(8),
                };
                into[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// Damaged copies of a real memory: no panic, no unbounded reading, and always a result.
pub(crate) fn mutations_are_survived(dump: &Dump) {
    let (memory, registers) = (&dump.memory, dump.registers.as_slice());
    let introspector = &mut Introspector::new();
    // The introspector already knows the guest from undamaged memory, so that the damage mostly affects the reading of
    // facts.
    assert!(introspector.observe(memory, registers).linux.is_some());
    let (mut linux, mut longest) = (0, Duration::ZERO);
    for seed in 0..90 {
        let view = Mutated { view: memory, seed };
        let start = Instant::now();
        let fresh = seed % 6 == 5;
        let observation = if fresh {
            Introspector::new().observe(&view, registers)
        } else {
            introspector.observe(&view, registers)
        };
        assert!(!observation.tables().is_empty());
        linux += u32::from(observation.linux.is_some());
        if let (Some(kernel), true) = (introspector.kernel(), seed % 10 == 0) {
            let map = OwnerMap::build(&kernel, &view, &observation);
            memory.layout().gfns().for_each(|gfn| drop(map.explain(gfn)));
        }
        longest = longest.max(start.elapsed());
        assert!(start.elapsed() < Duration::from_mins(1), "seed {seed} took {:?}", start.elapsed());
        assert!(observation.linux.is_some() || observation.reason.is_some());
    }
    eprintln!("of 90 mutated memories {linux} were still read as Linux; the longest took {longest:?}");
    assert!(linux > 0);
}
