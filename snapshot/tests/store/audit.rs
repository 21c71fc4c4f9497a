//! The audit detects frames that change without being reported, and only those (docs/audit.md).

use std::sync::Arc;

use proptest::prelude::*;
use retrovisor_guest::{Gfn, MemoryIo as _, MemoryLayout, PAGE_SIZE};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    AuditReport, CheckpointRecord, CheckpointRequest, CurrentPolicy, EventId, EventSeverity, MachineId,
    Recorder, RecorderSettings, RollbackRequest, Store, image_hash,
};

use crate::toy::{Frame, open, page_of, quick_dir};

const PAGES: u64 = 256;
const FRAMES: u64 = 16;
/// An unreported change is detected within this many checkpoints.
const NOTICED_WITHIN: u64 = PAGES / FRAMES;

struct Lab {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    id: MachineId,
    machine: MemoryMachine,
    recorder: Recorder,
    /// The contents of the memory at each checkpoint, in order.
    images: Vec<blake3::Hash>,
    written: u64,
}

impl Lab {
    fn new(settings: RecorderSettings) -> Self {
        let dir = quick_dir();
        let store = open(dir.path());
        let layout = MemoryLayout::flat(PAGES * PAGE_SIZE as u64).unwrap();
        let mut machine = MemoryMachine::new("m", layout).unwrap();
        // Some frames hold data, some are zero.
        for index in (0..PAGES).filter(|index| index % 3 != 0) {
            machine.poke(Gfn(index).gpa(), &page_of(index)).unwrap();
        }
        let id = store.catalogue().add_machine(retrovisor_guest::Machine::identity(&machine)).unwrap().id;
        let recorder = Recorder::with_settings(Arc::clone(&store), id, settings).unwrap();
        Self { _dir: dir, store, id, machine, recorder, images: Vec::new(), written: 0 }
    }

    /// The guest writes a few frames, as usual.
    fn work(&mut self) {
        self.written += 1;
        for index in [1, 2, 3 + self.written % 40] {
            self.machine.poke(Gfn(index).gpa(), &page_of(1_000 + self.written)).unwrap();
        }
    }

    fn checkpoint(&mut self) -> CheckpointRecord {
        self.work();
        self.images.push(image_hash(self.machine.memory()).unwrap());
        self.recorder.checkpoint(&mut self.machine, &CheckpointRequest::default()).unwrap().record
    }

    fn change_unreported(&mut self, index: u64) {
        self.machine.poke_unreported(Gfn(index).gpa(), &page_of(9_000 + index)).unwrap();
    }

    fn checkpoints(&self) -> Vec<CheckpointRecord> {
        self.store.catalogue().checkpoints(self.id).unwrap()
    }

    fn is_exact(&self, record: &CheckpointRecord) -> bool {
        let there = self.store.image_hash(record.id).unwrap();
        there == self.images[usize::try_from(record.sequence - 1).unwrap()]
    }

    /// Every checkpoint that is not exact is doubtful.
    fn check_marks(&self) {
        for record in self.checkpoints() {
            assert!(record.doubtful || self.is_exact(&record), "@{} is not exact", record.sequence);
        }
    }

    fn mismatches(&self) -> usize {
        let events = self.store.catalogue().events_since(self.id, EventId(0), 100).unwrap();
        events
            .iter()
            .filter(|event| event.kind == "capture" && event.severity == EventSeverity::Error)
            .count()
    }

    fn audit(&mut self) -> AuditReport {
        self.recorder.audit(&mut self.machine).unwrap()
    }
}

fn settings(audit_frames: u64) -> RecorderSettings {
    RecorderSettings { audit_frames, ..RecorderSettings::default() }
}

#[test]
fn an_unreported_change_is_noticed_marked_and_healed() {
    // A frame with data, and a zero one.
    for index in [100, 99] {
        let mut lab = Lab::new(settings(FRAMES));
        for _ in 0..5 {
            assert!(!lab.checkpoint().doubtful);
        }
        lab.change_unreported(index);
        let noticed = (1..=NOTICED_WITHIN).find(|_| {
            lab.checkpoint();
            lab.mismatches() > 0
        });
        assert!(noticed.is_some(), "not noticed within {NOTICED_WITHIN} checkpoints");
        let last = lab.checkpoints().pop().unwrap();
        assert!(last.doubtful && !lab.is_exact(&last));
        lab.check_marks();
        let doubtful: Vec<u64> =
            lab.checkpoints().iter().filter(|record| record.doubtful).map(|record| record.sequence).collect();
        assert!(doubtful[0] <= 6, "{doubtful:?}");
        assert!(doubtful.iter().copied().eq(doubtful[0]..=last.sequence), "{doubtful:?}");
        let incidents = lab.store.catalogue().incidents(lab.id).unwrap();
        assert_eq!(incidents.iter().map(|incident| incident.kind.as_str()).collect::<Vec<_>>(), ["capture"]);
        let first_bad = lab.store.catalogue().checkpoint(incidents[0].first_bad).unwrap();
        assert_eq!(first_bad.sequence, doubtful[0]);
        assert_eq!(incidents[0].detail["frames"], serde_json::json!([index]));
        let status = lab.recorder.audit_status();
        assert_eq!((status.mismatches, status.needs_full), (1, true));

        let next = lab.checkpoint();
        // Every frame was read: those that changed count.
        assert_eq!(next.dirty_pages, next.changed_pages);
        assert!(!next.doubtful && lab.is_exact(&next));
        for _ in 0..=NOTICED_WITHIN {
            assert!(!lab.checkpoint().doubtful);
        }
        lab.check_marks();
        assert_eq!(lab.mismatches(), 1);
        assert!(!lab.recorder.audit_status().needs_full);
    }
}

#[test]
fn captures_that_were_under_way_when_a_mismatch_was_found_are_doubtful() {
    let mut lab = Lab::new(settings(PAGES));
    lab.checkpoint();
    lab.change_unreported(200);
    let mut waiting = Vec::new();
    for _ in 0..6 {
        lab.work();
        lab.images.push(image_hash(lab.machine.memory()).unwrap());
        waiting.push(lab.recorder.capture(&mut lab.machine, &CheckpointRequest::default()).unwrap());
    }
    for pending in waiting {
        assert!(pending.wait().is_ok());
    }
    assert!(lab.mismatches() > 0);
    lab.check_marks();
    lab.recorder.drain(&mut lab.machine);
    let last = lab.checkpoint();
    assert!(!last.doubtful && lab.is_exact(&last));
}

#[test]
fn an_audit_of_the_whole_memory_finds_what_no_checkpoint_looked_for() {
    let mut lab = Lab::new(settings(0));
    assert!(lab.recorder.audit(&mut lab.machine).is_err(), "there is nothing to compare with");
    for _ in 0..3 {
        lab.checkpoint();
    }
    let clean = lab.audit();
    assert_eq!((clean.compared_pages, clean.written_pages, clean.mismatched_pages), (PAGES, 0, 0));
    assert_eq!(lab.recorder.audit_status().proven_pages, PAGES);
    let proven = lab.checkpoint();
    lab.audit();
    lab.change_unreported(50);
    lab.change_unreported(51);
    let wrong = lab.checkpoint();
    assert!(!wrong.doubtful);
    lab.work();
    let found = lab.audit();
    assert_eq!((found.compared_pages, found.written_pages), (PAGES - 3, 3));
    assert_eq!(found.mismatches, [Gfn(50), Gfn(51)]);
    assert_eq!(found.doubtful, Some(wrong.sequence..=wrong.sequence));
    assert_eq!((found.checkpoint.id, lab.mismatches()), (wrong.id, 1));
    lab.check_marks();
    assert!(!lab.store.catalogue().checkpoint(proven.id).unwrap().doubtful);
    let next = lab.checkpoint();
    assert_eq!(next.dirty_pages, next.changed_pages);
    assert!(!next.doubtful && lab.is_exact(&next));
    assert_eq!(lab.audit().mismatched_pages, 0);
}

#[test]
fn a_rollback_looks_at_every_frame_after_a_mismatch() {
    let mut lab = Lab::new(settings(PAGES));
    let first = lab.checkpoint();
    lab.change_unreported(77);
    lab.checkpoint();
    assert_eq!(lab.mismatches(), 1);
    let before = image_hash(lab.machine.memory()).unwrap();
    for current in [CurrentPolicy::Durable, CurrentPolicy::Staged] {
        let request = RollbackRequest { current, ..RollbackRequest::default() };
        let report = lab.recorder.rollback(&mut lab.machine, first.id, &request).unwrap();
        if current == CurrentPolicy::Durable {
            let kept = report.current.unwrap();
            assert_eq!((kept.doubtful, lab.store.image_hash(kept.id).unwrap()), (false, before));
        }
        assert_eq!(image_hash(lab.machine.memory()).unwrap(), lab.images[0]);
    }
    assert_eq!(lab.audit().mismatched_pages, 0);
}

#[test]
fn captures_that_fail_leave_no_hole_in_the_walk() {
    let mut lab = Lab::new(settings(FRAMES));
    for _ in 0..NOTICED_WITHIN {
        let before = lab.recorder.audit_status().proven_pages;
        for _ in 0..3 {
            lab.machine.script().on(
                retrovisor_scripted::Method::CaptureState,
                1,
                retrovisor_scripted::Action::Fail,
            );
            assert!(lab.recorder.capture(&mut lab.machine, &CheckpointRequest::default()).is_err());
        }
        assert_eq!(lab.recorder.audit_status().proven_pages, before);
        lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
        let after = lab.recorder.audit_status().proven_pages;
        assert!(after >= (before + FRAMES).min(PAGES), "{before} {after}");
    }
    assert_eq!(lab.recorder.audit_status().proven_pages, PAGES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A driver that reports every write is never suspected, whatever happens to the machine.
    #[test]
    fn a_driver_that_is_right_is_not_suspected(
        steps in prop::collection::vec((0_u8..8, 0_usize..40), 1..40),
        precopy_pages_min in prop_oneof![Just(0_u64), Just(2048)],
    ) {
        let mut lab = crate::toy::Lab::new(40);
        let settings = RecorderSettings { precopy_pages_min, ..RecorderSettings::default() };
        lab.recorder = Recorder::with_settings(Arc::clone(&lab.store), lab.machine, settings).unwrap();
        let mut taken = vec![lab.checkpoint()];
        lab.toy.restless = 1;
        for (at, (step, index)) in steps.into_iter().enumerate() {
            let request = |current| RollbackRequest { current, ..RollbackRequest::default() };
            let target = taken[index % taken.len()].id;
            match step {
                0 => lab.toy.set(index, Frame::Removed),
                1 => lab.toy.set(index, Frame::Zero),
                2 | 3 => lab.toy.scribble(index, at as u64),
                4 => drop(lab.recorder.rollback(&mut lab.toy, target, &request(CurrentPolicy::Durable)).unwrap()),
                5 => drop(lab.recorder.rollback(&mut lab.toy, target, &request(CurrentPolicy::Staged)).unwrap()),
                6 => drop(lab.recorder.undo(&mut lab.toy, &request(CurrentPolicy::Durable))),
                _ => taken.push(lab.checkpoint()),
            }
        }
        taken.push(lab.checkpoint());
        let whole = lab.recorder.audit(&mut lab.toy).unwrap();
        prop_assert_eq!(whole.mismatched_pages, 0);
        prop_assert_eq!(lab.recorder.audit_status().mismatches, 0);
        prop_assert!(lab.store.catalogue().checkpoints(lab.machine).unwrap().iter().all(|record| !record.doubtful));
    }
}
