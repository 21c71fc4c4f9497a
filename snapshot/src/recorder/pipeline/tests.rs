//! The pipeline on a storage that fails and waits on demand, with a guest that writes all the time.

mod storage;
mod watched_machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use retrovisor_guest::{Gpa, Machine, MemoryIo, MemoryLayout, PAGE_SIZE};
use retrovisor_scripted::MemoryMachine;

use self::storage::{Control, TestStorage};
use self::watched_machine::WatchedMachine;
use crate::error::Error;
use crate::pack::Directory;
use crate::store::{Access, Store, StoreOptions, image_hash};
use crate::{CheckpointRequest, CurrentPolicy, Recorder, RecorderSettings, RollbackRequest};

struct Lab {
    _dir: tempfile::TempDir,
    control: Arc<Control>,
    store: Arc<Store>,
    watched: WatchedMachine,
    recorder: Recorder,
}

fn lab(pages: u64, settings: RecorderSettings) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let control = Arc::new(Control::default());
    let storage =
        TestStorage { inner: Directory::new(&dir.path().join("packs")), control: Arc::clone(&control) };
    let store =
        Store::open_on(dir.path(), Access::Create, StoreOptions::default(), Arc::new(storage)).unwrap();
    let store = Arc::new(store);
    let machine = MemoryMachine::new("m", MemoryLayout::flat(pages * PAGE_SIZE as u64).unwrap()).unwrap();
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let recorder = Recorder::with_settings(Arc::clone(&store), id, settings).unwrap();
    let watched =
        WatchedMachine { machine, seen: None, is_paused: Arc::default(), pauses: Arc::default(), held: 0 };
    Lab { _dir: dir, control, store, watched, recorder }
}

/// Fills a page with bytes that follow from a number and do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn whatever_call_to_the_storage_fails_nothing_is_lost() {
    for failing in 1..25 {
        let Lab { _dir, control, store, mut watched, mut recorder } = lab(64, RecorderSettings::default());
        recorder.checkpoint(&mut watched, &CheckpointRequest::default()).unwrap();
        // Everything below waits together, and one call fails.
        control.set_blocked(true);
        let mut pending = Vec::new();
        for round in 0..12_u64 {
            for page in 0..5 {
                let seed = failing * 1_000 + round * 10 + page;
                watched.machine.poke(Gpa(seed * 7 % 64 * 4096), &noise(seed)).unwrap();
            }
            pending.push((
                recorder.capture(&mut watched, &CheckpointRequest::default()).unwrap(),
                watched.seen.unwrap(),
            ));
            if round == failing % 12 {
                control.calls_left.store(u32::try_from(failing / 4 + 1).unwrap(), Ordering::SeqCst);
                control.set_blocked(false);
            }
            if round % 5 == 4 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        control.set_blocked(false);
        let (mut first_failed, mut later) = (0, 0);
        for (pending, seen) in pending {
            match pending.wait() {
                Ok(report) => assert_eq!(store.image_hash(report.record.id).unwrap(), seen),
                Err(Error::Full { .. }) => first_failed += 1,
                Err(Error::NotStored { .. }) => later += 1,
                Err(other) => panic!("{other}"),
            }
        }
        let failed = control.calls_left.swap(0, Ordering::SeqCst) == 0;
        assert_eq!((first_failed, later > 0 && !failed), (u32::from(failed), false), "call {failing}");
        // The next one has all that those had which are not there.
        let next = recorder.checkpoint(&mut watched, &CheckpointRequest::default()).unwrap().record;
        assert_eq!(store.image_hash(next.id).unwrap(), image_hash(watched.memory()).unwrap());
        let kept = store.catalogue().checkpoints(next.machine).unwrap();
        assert_eq!(kept.len() as u64, 14 - u64::from(first_failed + later));
        assert_eq!(watched.held, i64::try_from(kept.len()).unwrap(), "states are released");
        assert!(kept.windows(2).all(|pair| pair[1].parent == Some(pair[0].id)), "one line");
        assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    }
}

#[test]
fn a_slow_disk_makes_the_next_capture_wait_before_the_pause() {
    let settings = RecorderSettings { staging_bytes_max: 2 << 20, ..RecorderSettings::default() };
    let Lab { _dir, control, store, mut watched, mut recorder } = lab(1_024, settings);
    recorder.checkpoint(&mut watched, &CheckpointRequest::default()).unwrap();
    control.set_blocked(true);
    let is_paused = Arc::clone(&watched.is_paused);
    let captured = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let recording = scope.spawn(|| {
            let mut pending = Vec::new();
            for round in 0..12_u64 {
                for page in 0..100 {
                    watched
                        .machine
                        .poke(Gpa((round * 31 + page) % 1_024 * 4096), &noise(round * 100 + page))
                        .unwrap();
                }
                let taken = recorder.capture(&mut watched, &CheckpointRequest::default()).unwrap();
                captured.fetch_add(1, Ordering::SeqCst);
                pending.push((taken, watched.seen.unwrap()));
            }
            for (taken, seen) in pending {
                let report = taken.wait().unwrap();
                assert_eq!(store.image_hash(report.record.id).unwrap(), seen);
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        let stuck = captured.load(Ordering::SeqCst);
        assert!((1..12).contains(&stuck), "the budget holds some captures, not all: {stuck}");
        assert!(!is_paused.load(Ordering::SeqCst), "it waits while the guest runs");
        control.set_blocked(false);
        recording.join().unwrap();
    });
    let used = recorder.memory_use();
    assert!(used.staging_bytes_peak <= used.staging_bytes_max, "{used:?}");
}

#[test]
fn the_stored_image_is_the_memory_at_the_instant_of_the_pause() {
    for (pages, staging_bytes_max) in [(2_048_u64, 64 << 20), (2_048, 4 << 20)] {
        let settings = RecorderSettings {
            staging_bytes_max,
            precopy_pages_min: 0,
            precopy_rounds_max: 4,
            ..RecorderSettings::default()
        };
        let Lab { _dir, store, mut watched, mut recorder, .. } = lab(pages, settings);
        let writer = watched.machine.writer();
        let (done, count) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seed = 1_u64;
                while !done.load(Ordering::Relaxed) {
                    // Pages in all states of being written: nothing that is copied while this runs is whole.
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let page = (seed >> 33) % pages;
                    let at = Gpa(page * 4096 + (seed >> 20 & 0xf00));
                    let bytes = noise(seed);
                    let length = if seed >> 60 == 0 { PAGE_SIZE } else { 200 };
                    writer
                        .poke(at, &bytes[..length.min(usize::try_from((pages * 4096) - at.0).unwrap())])
                        .unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut overridden = 0;
            let mut pending = Vec::new();
            for _ in 0..12 {
                // However busy the host is: enough for more than one round.
                count.store(0, Ordering::Relaxed);
                while count.load(Ordering::Relaxed) < 1_000 {
                    std::thread::yield_now();
                }
                let taken = recorder.capture(&mut watched, &CheckpointRequest::default()).unwrap();
                pending.push((taken, watched.seen.unwrap()));
            }
            for (taken, seen) in pending {
                let report = taken.wait().unwrap();
                assert_eq!(store.image_hash(report.record.id).unwrap(), seen);
                overridden += u64::from(report.timing.copied_pages < report.record.dirty_pages);
            }
            done.store(true, Ordering::Relaxed);
            eprintln!("{overridden} of 12 captures copied pages before the pause");
            // With hardly any memory, the rounds wait for the disk, and the guest writes everything again meanwhile.
            assert!(overridden > 0 || staging_bytes_max < 64 << 20);
        });
        assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    }
}

/// Runs `work` while another thread holds a lock of the store: `hold` takes it and calls what it is given. It is
/// released after `work` says that the guest had its pause, or, if `waits`, after the work has waited for a while with
/// the guest running.
fn beside_a_held_lock(
    hold: impl FnOnce(&Store, &dyn Fn()) + Send,
    waits: bool,
    work: impl FnOnce(&mut WatchedMachine, &mut Recorder) + Send,
) {
    let Lab { _dir, store, mut watched, mut recorder, .. } = lab(64, RecorderSettings::default());
    recorder.checkpoint(&mut watched, &CheckpointRequest::default()).unwrap();
    watched.machine.poke(Gpa(4096), &noise(1)).unwrap();
    let (is_paused, pauses) = (Arc::clone(&watched.is_paused), Arc::clone(&watched.pauses));
    let before = pauses.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let (reached, is_held) = std::sync::mpsc::channel();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let store = &store;
        scope.spawn(move || {
            hold(store, &|| {
                reached.send(()).unwrap();
                let _ = wait.recv_timeout(Duration::from_mins(1));
            });
        });
        is_held.recv().unwrap();
        let working = scope.spawn(move || {
            work(&mut watched, &mut recorder);
            (watched, recorder)
        });
        if waits {
            std::thread::sleep(Duration::from_millis(200));
            assert!(!working.is_finished(), "it waits for the lock");
            assert_eq!(pauses.load(Ordering::SeqCst), before, "it waits before the pause");
        } else {
            while pauses.load(Ordering::SeqCst) == before || is_paused.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
                assert!(!working.is_finished() || pauses.load(Ordering::SeqCst) > before);
            }
        }
        drop(release);
        drop(working.join().unwrap());
    });
}

fn hold_content_writer(store: &Store, until_released: &dyn Fn()) {
    let _guard = store.content_writer().unwrap();
    until_released();
}

fn hold_long_writes(store: &Store, until_released: &dyn Fn()) {
    let _guard = store.catalogue().exclude_long_writes();
    until_released();
}

fn hold_maintenance(store: &Store, until_released: &dyn Fn()) {
    let _guard = store.maintain().unwrap();
    until_released();
}

#[test]
fn a_checkpoint_has_its_pause_whoever_holds_a_lock() {
    fn checkpoint(watched: &mut WatchedMachine, recorder: &mut Recorder) {
        recorder.checkpoint(watched, &CheckpointRequest::default()).unwrap();
    }
    beside_a_held_lock(hold_content_writer, false, checkpoint);
    beside_a_held_lock(hold_long_writes, false, checkpoint);
    beside_a_held_lock(hold_maintenance, false, checkpoint);
}

#[test]
fn a_rollback_waits_for_locks_before_its_pause() {
    fn rollback(watched: &mut WatchedMachine, recorder: &mut Recorder, current: CurrentPolicy) {
        let target = recorder.position().unwrap().checkpoint;
        let request = RollbackRequest { current, ..RollbackRequest::default() };
        recorder.rollback(watched, target, &request).unwrap();
    }
    let durable = |w: &mut WatchedMachine, r: &mut Recorder| rollback(w, r, CurrentPolicy::Durable);
    beside_a_held_lock(hold_content_writer, true, durable);
    beside_a_held_lock(hold_long_writes, true, durable);
    beside_a_held_lock(hold_maintenance, false, durable);
    let staged = |w: &mut WatchedMachine, r: &mut Recorder| rollback(w, r, CurrentPolicy::Staged);
    beside_a_held_lock(hold_content_writer, false, staged);
    beside_a_held_lock(hold_long_writes, false, staged);
}
