//! Power cuts after every event of random histories.
//!
//! `RETROVISOR_CRASH_SEED` and `RETROVISOR_CRASH_EVENT` (both as printed by a failure) select one moment;
//! `RETROVISOR_CRASH_HISTORIES` and `RETROVISOR_CRASH_ALL=1` select more histories, and all losses after each event,
//! than a normal test run has time for.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::check::{Expected, check};
use super::disk::{Disk, Image, Loss, write_image};
use super::random::Random;
use super::trace::{self, Event};
use crate::toy::quick_dir;

const HISTORIES: u64 = 4;
const STEPS: u64 = 24;
/// Of the possible disks of each event, one in this many is checked.
const SAMPLE: u64 = 16;
/// Disks kept in files for analysis.
const KEPT: usize = 5;
/// Random images for each event.
const BY_CHANCE: u64 = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// One disk to check.
struct Case {
    seed: u64,
    event: usize,
    loss: Loss,
    image: Image,
    expected: Expected,
}

/// All disks that a history could have left, without those that are equal.
fn cases(seed: u64, events: &[Event], only: Option<u64>, sample: u64, mut each: impl FnMut(Case)) {
    let (mut disk, mut expected) = (Disk::default(), Expected::default());
    let mut known = HashSet::new();
    for (event, happened) in events.iter().enumerate() {
        disk.apply(happened);
        if let Event::Mark(mark) = happened {
            expected.hear(mark);
        }
        if only.is_some_and(|only| only != event as u64) {
            continue;
        }
        let mut random = Random::new(seed << 32 | event as u64);
        let mut losses = vec![Loss::Nothing];
        if !disk.is_settled() {
            losses.push(Loss::Everything);
            losses.extend((0..BY_CHANCE).map(|_| Loss::Some { seed: random.below(u64::MAX) }));
        }
        if let Some(length) = disk.last_write() {
            let sectors = length / 512;
            let cuts = [random.index(length + 1), 512 * random.index(sectors + 1)];
            losses.extend(cuts.map(|bytes| Loss::Torn { bytes, others: random.one_in(2) }));
        }
        for loss in losses {
            if !random.one_in(sample) {
                continue;
            }
            let image = disk.image(loss);
            if known.insert((
                fingerprint(&image),
                expected.done.clone().into_keys().collect::<Vec<_>>(),
                expected.machine,
            )) {
                each(Case { seed, event, loss, image, expected: expected.clone() });
            }
        }
    }
}

fn fingerprint(image: &Image) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (path, bytes) in image {
        let bytes = bytes.as_deref().unwrap_or(b"directory");
        hasher
            .update(path.to_str().unwrap().as_bytes())
            .update(&(bytes.len() as u64).to_le_bytes())
            .update(bytes);
    }
    hasher.finalize()
}

fn look(case: &Case, dir: &Path) -> Result<(), String> {
    write_image(&case.image, dir);
    catch_unwind(AssertUnwindSafe(|| check(&dir.join("store"), &case.expected, case.seed))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[test]
fn after_any_power_cut_the_store_has_what_it_committed() {
    let only = number("RETROVISOR_CRASH_EVENT");
    let seeds = match number("RETROVISOR_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("RETROVISOR_CRASH_HISTORIES").unwrap_or(HISTORIES),
    };
    let all = only.is_some() || number("RETROVISOR_CRASH_ALL").is_some();
    let (looked, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let mut events = 0;
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Case>(64);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let next = receiver.lock().unwrap().recv();
                    let Ok(case) = next else { return };
                    let dir = quick_dir();
                    if let Err(why) = look(&case, dir.path()) {
                        // Stays for analysis; written again, because the check changed it.
                        let mut failures = failures.lock().unwrap();
                        let (seed, event, loss) = (case.seed, case.event, case.loss);
                        let mut text = format!("seed {seed}, event {event}, {loss:?}: {why}");
                        if failures.len() < KEPT {
                            let dir = tempfile::tempdir().unwrap().keep();
                            write_image(&case.image, &dir);
                            write!(text, "\n    the disk is in {}", dir.display()).unwrap();
                        }
                        failures.push(text);
                    }
                    looked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for seed in seeds {
            let dir = quick_dir();
            let Some(trace) = trace::run(dir.path(), seed, STEPS, None) else {
                eprintln!("SKIPPED: processes cannot be traced here (ptrace is forbidden)");
                return;
            };
            assert!(trace.success, "the child failed:\n{}", trace.output);
            events += trace.events.len();
            cases(seed, &trace.events, only, if all { 1 } else { SAMPLE }, |case| sender.send(case).unwrap());
            if failures.lock().unwrap().len() > 20 {
                break;
            }
        }
        drop(sender);
    });
    let (looked, failures) = (looked.into_inner(), failures.into_inner().unwrap());
    eprintln!("{looked} disks after {events} events");
    assert!(
        failures.is_empty(),
        "{} of {looked} disks are not as they must be. Again: RETROVISOR_CRASH_SEED=… RETROVISOR_CRASH_EVENT=…\n{}",
        failures.len(),
        failures[..failures.len().min(8)].join("\n")
    );
    if only.is_none() && events > 2000 {
        assert!(looked > 1000, "only {looked} disks");
    }
}
