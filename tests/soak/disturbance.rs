//! What the host does to the daemon.

use std::fs::{self, File};
use std::io;
use std::time::{Duration, Instant, SystemTime};

use crate::Random;
use crate::operation::Outcome;
use crate::world::{ATTACHED, RAN, World, run};

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
        eprintln!("SKIPPED: SOAK_FAKETIME does not name a library that steps the clock");
        return Outcome::Refused;
    }
    let step = random.pick(&["+0", "+3600", "-3600", "+86400", "-86400", "+1", "-1"]).expect("a step");
    fs::write(world.clock(), format!("{step}\n")).expect("the clock's file");
    // libfaketime reads it once a second.
    std::thread::sleep(Duration::from_millis(2200));
    // While another client has the machine, or it is paused, there is no checkpoint to see the clock by.
    let (code, stdout, _) = run(&world.store(), &["checkpoint", ATTACHED, "--json"]);
    if code != 0 {
        return Outcome::Refused;
    }
    let taken: serde_json::Value = serde_json::from_str(&stdout).expect("a checkpoint");
    let taken_ms = taken["taken_at_ms"].as_i64().expect("when it was taken");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    let seen_s = taken_ms / 1000 - i64::try_from(now.as_secs()).expect("a clock before the year 292 billion");
    let step_s: i64 = step.parse().expect("a step in seconds");
    assert!((seen_s - step_s).abs() < 60, "the daemon's clock is {seen_s} s off, not {step_s} s");
    Outcome::Done
}
