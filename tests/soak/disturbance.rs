//! What the host does to the daemon.

use std::fs::{self, File};
use std::io;
use std::time::{Duration, Instant};

use crate::Random;
use crate::operation::Outcome;
use crate::world::{ATTACHED, RAN, World};

/// A checkpoint must work again within this time after there is space.
const RECOVERY: Duration = Duration::from_mins(1);

/// Fills the store's file system for some seconds. Afterwards both machines can be checkpointed.
pub(crate) fn fill_disk(world: &mut World) -> Outcome {
    let ballast = world.store().join("ballast");
    let mut file = File::create(&ballast).expect("the ballast");
    // Until nothing more fits.
    let _full = io::copy(&mut io::repeat(1), &mut file);
    std::thread::sleep(Duration::from_secs(2));
    let outcome = world.tried(&["checkpoint", RAN]).max(world.tried(&["checkpoint", ATTACHED]));
    drop(file);
    fs::remove_file(&ballast).expect("the ballast is removed");
    for machine in [RAN, ATTACHED] {
        let begun = Instant::now();
        while world.tried(&["checkpoint", machine]) == Outcome::Refused {
            assert!(begun.elapsed() < RECOVERY, "{machine} is not checkpointed after the disk was full");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    outcome
}

/// Steps the daemon's wall clock by minutes or days, forward or back.
pub(crate) fn step_clock(world: &mut World, random: &mut Random) -> Outcome {
    if std::env::var_os("SOAK_FAKETIME").is_none() {
        return Outcome::Refused;
    }
    let step = random.pick(&["+0", "+3600", "-3600", "+86400", "-86400", "+1", "-1"]).expect("a step");
    fs::write(world.clock(), format!("{step}\n")).expect("the clock's file");
    // libfaketime reads it once a second.
    std::thread::sleep(Duration::from_millis(1200));
    Outcome::Done
}
