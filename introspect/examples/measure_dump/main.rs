//! Measures the cost of reading a guest: the first observation, and a second one of the same guest a little later.
//!
//! `cargo run --release -p retrovisor-introspect --example measure_dump -- memory.raw registers.txt later.raw`
//!
//! Both dumps are held in memory and their frames have page tokens, as in a store.

#[path = "../inspect_dump/registers.rs"]
mod registers;

use std::{error::Error, path::Path, time::Instant};

use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page, PageToken, ZERO_PAGE, is_zero};
use retrovisor_introspect::{Introspector, OwnerMap, RawDump};

const ROUNDS: usize = 15;

struct Held {
    layout: MemoryLayout,
    pages: Vec<Page>,
    zero: Vec<bool>,
    tokens: Vec<PageToken>,
}

impl Held {
    fn read(path: &str) -> Result<Self, Box<dyn Error>> {
        let dump = RawDump::open(Path::new(path))?;
        let layout = dump.layout().clone();
        let mut pages = vec![ZERO_PAGE; usize::try_from(layout.pages())?];
        for (gfn, page) in layout.gfns().zip(&mut pages) {
            dump.read_page(gfn, page)?;
        }
        let zero = pages.iter().map(is_zero).collect();
        let tokens = (0..layout.pages()).map(PageToken).collect();
        Ok(Self { layout, pages, zero, tokens })
    }

    fn place(&self, gfn: Gfn) -> Option<usize> {
        self.layout.index(gfn).and_then(|index| usize::try_from(index).ok())
    }
}

impl MemoryView for Held {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let place = self.place(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        *into = self.pages[place];
        Ok(())
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        self.place(gfn).map(|place| self.tokens[place])
    }
    fn known_zero(&self, gfn: Gfn) -> bool {
        self.place(gfn).is_some_and(|place| self.zero[place])
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, vcpus, later] = arguments.as_slice() else {
        return Err("usage: measure_dump memory.raw registers.txt later.raw".into());
    };
    let vcpus = registers::parse(&std::fs::read_to_string(vcpus)?);
    let (first, mut later) = (Held::read(first)?, Held::read(later)?);
    let mut dirty = 0;
    for (place, (old, new)) in first.pages.iter().zip(&later.pages).enumerate() {
        if old != new {
            later.tokens[place].0 |= 1 << 40;
            dirty += 1;
        }
    }
    println!("{dirty} frames differ");
    let (mut firsts, mut nexts, mut maps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut introspector = Introspector::new();
        firsts.push(timed(|| drop(introspector.observe(&first, &vcpus))));
        let mut observation = None;
        nexts.push(timed(|| observation = Some(introspector.observe(&later, &vcpus))));
        let (Some(kernel), Some(observation)) = (introspector.kernel(), observation) else {
            return Err("no kernel was found".into());
        };
        let mut map = None;
        maps.push(timed(|| map = Some(OwnerMap::build(&kernel, &later, &observation))));
        if let (Some(map), true) = (map, maps.len() == ROUNDS) {
            let all = timed(|| later.layout.gfns().for_each(|gfn| drop(map.explain(gfn))));
            println!("owner_ns   {:8.0}", all * 1e6 / f64::from(u32::try_from(later.layout.pages())?));
        }
    }
    for (name, mut times) in [("first_ms", firsts), ("next_ms", nexts), ("map_ms", maps)] {
        times.sort_by(f64::total_cmp);
        println!("{name:10} {:8.2} median, {:.2} worst of {ROUNDS}", times[ROUNDS / 2], times[ROUNDS - 1]);
    }
    Ok(())
}

/// Milliseconds.
fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}
