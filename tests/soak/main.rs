//! Random operations on two guests for long, with kills, a full disk, steps of the host's clock and a second client:
//! `make soak`.
//!
//! Runs for `SOAK_SECONDS` (600) from the seed `SOAK_SEED` (the time); the seed is printed and repeats the order of
//! operations. Every operation must work or be refused with a message; the guests must find no corruption. At the end
//! the store is verified, the memory of both guests is compared with their newest checkpoints, everything is stopped
//! and removed, and nothing may be left over: no process, no socket, no file of a machine, no descriptor and no memory
//! that the daemon did not need before.

mod daemon;
mod disturbance;
mod operation;
mod remains;
mod rivals;
mod world;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use operation::{Operation, Outcome};
use world::World;

/// Set inside the mount namespace in which the store's file system is.
const INSIDE: &str = "SOAK_INSIDE";
/// The part of the time, from its end, in which the daemon is not restarted, so that its growth can be seen.
const CALM_PART: u32 = 3;

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        enter_namespace();
    }
    let seconds = number("SOAK_SECONDS").unwrap_or(600);
    let seed = number("SOAK_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs())
    });
    eprintln!("soak: {seconds} s, SOAK_SEED={seed}");
    let duration = Duration::from_secs(seconds);
    let mut random = Random(seed);
    let mut world = World::start();
    let mut done: BTreeMap<(&str, Outcome), u32> = BTreeMap::new();
    let rivals = rivals::start(world.store(), seed ^ 0x5eed);
    let begun = Instant::now();
    let mut said = begun;
    while begun.elapsed() < duration {
        let is_calm = begun.elapsed() > duration / CALM_PART * (CALM_PART - 1);
        let operation = Operation::choose(&mut random, is_calm);
        let outcome = operation.run(&mut world, &mut random);
        *done.entry((operation.name(), outcome)).or_default() += 1;
        world.must_be_sound();
        if is_calm {
            world.note_daemon();
        }
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            eprintln!("soak: {} s, {} operations", begun.elapsed().as_secs(), done.values().sum::<u32>());
        }
    }
    let (by_rivals, refused_rivals) = rivals.stop();
    for ((name, outcome), count) in &done {
        println!("{name:<24} {outcome:<8} {count:>5}");
    }
    println!("a second client: {by_rivals} operations, {refused_rivals} refused");
    remains::check(world);
    println!(
        "soak: {} operations in {} s, nothing lost and nothing left over",
        done.values().sum::<u32>(),
        seconds
    );
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Starts this program again in a mount namespace of its own: the small file system of the store ends with it.
fn enter_namespace() -> ! {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let error = command.arg(std::env::current_exe().expect("this program's path")).env(INSIDE, "1").exec();
    panic!("unshare does not start: {error}");
}

/// Numbers that a seed repeats (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let bound = u64::try_from(bound.max(1)).expect("a bound of 64 bits");
        usize::try_from(mixed % bound).expect("below the bound")
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}
