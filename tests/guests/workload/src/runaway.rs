//! What an operator would call a runaway: processes that burn CPU, start children in a steady loop and grow.
//!
//! Nothing in the kernel is touched, so that only statistics can see it. Memory and the number of
//! processes are bounded: the guest survives.

use std::hint::black_box;
use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::arguments::Runaway;
use crate::page::Page;

/// Memory that a burner takes between two looks at its end.
const GROWTH_PAGES: usize = 256;
/// How long a burner spins between two growths.
const SPIN: Duration = Duration::from_millis(100);
/// How long a child lives.
const LINGER: Duration = Duration::from_secs(2);
/// Children at the same time, however slow the guest.
const CHILDREN_MAX: usize = 64;

/// Starts the burners, then children in a steady loop.
pub(crate) fn run(options: &Runaway) -> io::Result<()> {
    let end = end(options);
    let mut burners = Vec::new();
    for _ in 0..options.burners {
        burners.push(start(options, "burn")?);
    }
    let mut children: Vec<Child> = Vec::new();
    while end.is_none_or(|end| Instant::now() < end) {
        if children.len() < CHILDREN_MAX {
            children.push(start(options, "linger")?);
        }
        thread::sleep(Duration::from_millis(options.spawn_every_ms));
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
    for mut child in children.into_iter().chain(burners) {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// Burns CPU and grows up to the limit; from then on rewrites what it has.
pub(crate) fn burn(options: &Runaway) {
    let (end, limit_pages) = (end(options), options.memory_mib * 256);
    let mut pages: Vec<Page> = Vec::with_capacity(limit_pages);
    let mut round = 0;
    while end.is_none_or(|end| Instant::now() < end) {
        round += 1;
        if pages.len() + GROWTH_PAGES <= limit_pages {
            pages.resize(pages.len() + GROWTH_PAGES, Page::zero());
        }
        let grown = pages.len().saturating_sub(GROWTH_PAGES);
        for (number, page) in (0..).zip(&mut pages[grown..]) {
            page.fill(number, round);
        }
        let spun = Instant::now();
        while spun.elapsed() < SPIN {
            black_box((0..1000_u64).fold(0, |sum, word| sum ^ black_box(word)));
        }
    }
}

/// Touches some memory, stays a moment, and ends.
pub(crate) fn linger(options: &Runaway) {
    let mut pages = vec![Page::zero(); 64.min(options.memory_mib * 256)];
    for (number, page) in (0..).zip(&mut pages) {
        page.fill(number, u64::from(std::process::id()));
    }
    thread::sleep(LINGER);
    black_box(&pages);
}

fn start(options: &Runaway, verb: &str) -> io::Result<Child> {
    let mut command = Command::new(&options.program);
    command.arg(verb).args(["--memory-mib", &options.memory_mib.to_string()]);
    if let Some(seconds) = options.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    command.stdin(Stdio::null()).spawn()
}

fn end(options: &Runaway) -> Option<Instant> {
    options.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds))
}
