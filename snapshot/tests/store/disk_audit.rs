//! The audit detects blocks of a disk that change without being reported, and only those (docs/audit.md).

use std::sync::Arc;

use proptest::prelude::*;
use retrovisor_guest::{
    BLOCK_SIZE, DiskIo as _, Machine as _, MachineState, MemoryLayout, PAGE_SIZE, StateIo as _,
};
use retrovisor_scripted::{Action, MemoryMachine, Method};
use retrovisor_snapshot::{
    CheckpointRecord, CheckpointRequest, CurrentPolicy, EventId, EventSeverity, MachineId, Recorder,
    RecorderSettings, RollbackRequest, Store,
};

use crate::toy::{open, page_of, quick_dir};

/// More than are looked at for one checkpoint.
const BLOCKS: u64 = 4_200;
/// The last block is cut off.
const SIZE: usize = 4_200 * BLOCK_SIZE - 1536;
/// Blocks that the guest has written at first: every third one of the first third of the disk.
const WRITTEN: u64 = BLOCKS / 9;
/// Blocks with data that are compared for each checkpoint.
const SAMPLED: u64 = 64;
/// An unreported change is noticed within this many checkpoints (docs/audit.md).
const NOTICED_WITHIN: u64 = (WRITTEN + 100).div_ceil(SAMPLED) + BLOCKS.div_ceil(4096) + 1;

struct Lab {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    id: MachineId,
    machine: MemoryMachine,
    recorder: Recorder,
    /// The disk at each checkpoint, in order.
    images: Vec<blake3::Hash>,
    written: u64,
}

fn base() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..BLOCKS / 2).flat_map(|block| page_of(block + 1_000_000)).collect();
    bytes.resize(SIZE, 0);
    bytes
}

fn bytes_of(seed: u64) -> [u8; BLOCK_SIZE] {
    if seed == 0 { [0; BLOCK_SIZE] } else { page_of(seed) }
}

impl Lab {
    fn new(settings: RecorderSettings) -> Self {
        let dir = quick_dir();
        let store = open(dir.path());
        let layout = MemoryLayout::flat(16 * PAGE_SIZE as u64).unwrap();
        let machine = MemoryMachine::new("m", layout).unwrap().with_disk(base());
        let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
        let recorder = Recorder::with_settings(Arc::clone(&store), id, settings).unwrap();
        let mut lab = Self { _dir: dir, store, id, machine, recorder, images: Vec::new(), written: 0 };
        (0..WRITTEN).for_each(|number| lab.write(3 * number, 2_000_000 + number));
        lab
    }

    fn audited(audit_blocks: u64) -> Self {
        Self::new(RecorderSettings { audit_blocks, ..RecorderSettings::default() })
    }

    fn write(&mut self, block: u64, seed: u64) {
        let start = usize::try_from(block).unwrap() * BLOCK_SIZE;
        let end = (start + BLOCK_SIZE).min(SIZE);
        self.machine.disk_mut()[start..end].copy_from_slice(&bytes_of(seed)[..end - start]);
    }

    fn write_unreported(&mut self, block: u64, seed: u64) {
        self.machine.write_disk_unreported(block * BLOCK_SIZE as u64, &bytes_of(seed));
    }

    fn checkpoint(&mut self) -> CheckpointRecord {
        // The guest writes a few blocks, as usual.
        self.written += 1;
        self.write(1, self.written);
        self.write(4_000 + self.written % 40, self.written % 3);
        self.images.push(blake3::hash(self.machine.disk_mut()));
        self.recorder.checkpoint(&mut self.machine, &CheckpointRequest::default()).unwrap().record
    }

    fn checkpoints(&self) -> Vec<CheckpointRecord> {
        self.store.catalogue().checkpoints(self.id).unwrap()
    }

    fn is_exact(&self, record: &CheckpointRecord) -> bool {
        let (image, base) = (self.store.disk(record.id, "d0").unwrap(), base());
        let mut out = std::io::Cursor::new(Vec::new());
        image
            .export(&mut out, &mut |block, page| {
                let start = usize::try_from(block).unwrap() * BLOCK_SIZE;
                let end = (start + BLOCK_SIZE).min(SIZE);
                page.fill(0);
                page[..end - start].copy_from_slice(&base[start..end]);
                Ok(())
            })
            .unwrap();
        blake3::hash(out.get_ref()) == self.images[usize::try_from(record.sequence - 1).unwrap()]
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

    fn proven(&self) -> u64 {
        self.recorder.audit_status().disks.first().map_or(0, |disk| disk.proven_blocks)
    }
}

#[test]
fn an_unreported_block_is_noticed_marked_and_healed() {
    // A written block, two of the base image, of which one becomes zero, and the last one.
    for (block, seed) in [(300, 9_001), (2_500, 9_002), (1_600, 0), (BLOCKS - 1, 9_003)] {
        let mut lab = Lab::audited(SAMPLED);
        for _ in 0..4 {
            assert!(!lab.checkpoint().doubtful);
        }
        lab.write_unreported(block, seed);
        let noticed = (1..=NOTICED_WITHIN).find(|_| {
            lab.checkpoint();
            lab.mismatches() > 0
        });
        assert!(noticed.is_some(), "block {block} is not noticed within {NOTICED_WITHIN} checkpoints");
        let last = lab.checkpoints().pop().unwrap();
        assert!(last.doubtful && !lab.is_exact(&last));
        lab.check_marks();
        let doubtful: Vec<u64> =
            lab.checkpoints().iter().filter(|record| record.doubtful).map(|record| record.sequence).collect();
        assert!(doubtful[0] <= 5, "{doubtful:?}");
        assert!(doubtful.iter().copied().eq(doubtful[0]..=last.sequence), "{doubtful:?}");
        let incidents = lab.store.catalogue().incidents(lab.id).unwrap();
        assert_eq!(incidents.iter().map(|incident| incident.kind.as_str()).collect::<Vec<_>>(), ["capture"]);
        let first_bad = lab.store.catalogue().checkpoint(incidents[0].first_bad).unwrap();
        assert_eq!(first_bad.sequence, doubtful[0]);
        assert_eq!(incidents[0].detail["disk"], "d0");
        assert_eq!(incidents[0].detail["blocks"], serde_json::json!([block]));
        assert!(incidents[0].summary.starts_with("1 block of disk d0 changed"), "{}", incidents[0].summary);
        let status = lab.recorder.audit_status();
        assert_eq!((status.mismatched_blocks(), status.mismatches), (1, 0));
        assert!(status.needs_full_disks && !status.needs_full);

        let next = lab.checkpoint();
        assert!(!next.doubtful && lab.is_exact(&next));
        for _ in 0..NOTICED_WITHIN {
            assert!(!lab.checkpoint().doubtful);
        }
        lab.check_marks();
        assert_eq!(lab.mismatches(), 1);
        assert!(!lab.recorder.audit_status().needs_full_disks);
    }
}

#[test]
fn checkpoints_before_the_block_was_compared_last_are_not_doubtful() {
    let mut lab = Lab::audited(SAMPLED);
    while lab.proven() < BLOCKS {
        lab.checkpoint();
    }
    // By now every block was compared once.
    let proven = lab.checkpoint().sequence;
    for _ in 0..NOTICED_WITHIN {
        lab.checkpoint();
    }
    lab.write_unreported(3_000, 77);
    let noticed = (1..=NOTICED_WITHIN).find(|_| {
        lab.checkpoint();
        lab.mismatches() > 0
    });
    assert!(noticed.is_some(), "not noticed within {NOTICED_WITHIN} checkpoints");
    let first = lab.checkpoints().into_iter().find(|record| record.doubtful).unwrap();
    assert!(first.sequence > proven, "@{} of {}", first.sequence, lab.images.len());
    lab.check_marks();
}

#[test]
fn captures_that_were_under_way_when_a_mismatch_was_found_are_doubtful() {
    let mut lab = Lab::audited(240);
    lab.checkpoint();
    lab.write_unreported(3_900, 5);
    let mut waiting = Vec::new();
    for _ in 0..12 {
        lab.written += 1;
        lab.write(1, lab.written);
        lab.images.push(blake3::hash(lab.machine.disk_mut()));
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
fn an_audit_of_the_whole_disk_finds_what_no_checkpoint_looked_for() {
    let mut lab = Lab::audited(0);
    for _ in 0..3 {
        lab.checkpoint();
    }
    assert_eq!(lab.machine.script().calls(Method::DiskBlocks), 0, "the audit is off");
    let clean = lab.recorder.audit(&mut lab.machine).unwrap();
    let [disk] = &clean.disks[..] else { panic!("{clean:?}") };
    assert_eq!((disk.blocks, disk.compared_blocks, disk.mismatched_blocks), (BLOCKS, BLOCKS, 0));
    assert_eq!((lab.proven(), clean.doubtful), (BLOCKS, None));
    for (block, seed) in [(7, 1), (1_999, 0), (BLOCKS - 1, 2)] {
        lab.write_unreported(block, seed);
    }
    let wrong = lab.checkpoint();
    assert!(!wrong.doubtful);
    let found = lab.recorder.audit(&mut lab.machine).unwrap();
    assert_eq!(found.disks[0].mismatches, [7, 1_999, BLOCKS - 1]);
    assert_eq!((found.mismatched_pages, found.mismatched_blocks()), (0, 3));
    assert_eq!(found.doubtful, Some(wrong.sequence..=wrong.sequence));
    assert_eq!(lab.mismatches(), 1);
    lab.check_marks();
    let next = lab.checkpoint();
    assert!(!next.doubtful && lab.is_exact(&next));
    assert_eq!(lab.recorder.audit(&mut lab.machine).unwrap().mismatched_blocks(), 0);
}

#[test]
fn a_rollback_reads_every_written_block_after_a_mismatch() {
    for current in [CurrentPolicy::Durable, CurrentPolicy::Staged] {
        let mut lab = Lab::audited(0);
        let first = lab.checkpoint();
        lab.write_unreported(2_000, 5);
        lab.checkpoint();
        assert_eq!(lab.recorder.audit(&mut lab.machine).unwrap().mismatched_blocks(), 1);
        lab.images.push(blake3::hash(lab.machine.disk_mut()));
        let request = RollbackRequest { current, ..RollbackRequest::default() };
        let report = lab.recorder.rollback(&mut lab.machine, first.id, &request).unwrap();
        let kept = report.current.unwrap();
        assert!(!kept.doubtful && lab.is_exact(&kept), "{current:?}");
        assert_eq!(blake3::hash(lab.machine.disk_mut()), lab.images[0]);
    }
}

#[test]
fn a_rollback_reads_no_blocks_for_the_audit() {
    let mut lab = Lab::audited(SAMPLED);
    let first = lab.checkpoint();
    let calls = lab.machine.script().calls(Method::DiskBlocks);
    assert!(calls > 0, "a checkpoint does");
    for current in [CurrentPolicy::Durable, CurrentPolicy::Staged] {
        lab.write(7, 8);
        let request = RollbackRequest { current, ..RollbackRequest::default() };
        lab.recorder.rollback(&mut lab.machine, first.id, &request).unwrap();
        assert_eq!(lab.machine.script().calls(Method::DiskBlocks), calls, "{current:?}");
    }
}

#[test]
fn a_disk_that_cannot_be_compared_is_named_and_is_no_error_of_a_checkpoint() {
    let mut lab = Lab::audited(SAMPLED);
    lab.checkpoint();
    let proven = lab.proven();
    lab.machine.script().on(Method::DiskBlocks, 1, Action::Fail);
    assert!(!lab.checkpoint().doubtful);
    assert_eq!(lab.proven(), proven);
    lab.checkpoint();
    assert!(lab.proven() > proven);
    // The driver does not retain the state of the newest checkpoint any more.
    let disks = lab.machine.retained_disks().unwrap();
    lab.machine.release_state(&MachineState { disks, ..MachineState::default() }).unwrap();
    let report = lab.recorder.audit(&mut lab.machine).unwrap();
    assert_eq!(report.disks[0].compared_blocks, 0);
    assert!(report.disks[0].not_compared.contains("does not retain"), "{report:?}");
    assert_eq!(lab.mismatches(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A driver that reports every block is never suspected, whatever happens to the machine.
    #[test]
    fn a_driver_that_is_right_is_not_suspected(
        steps in prop::collection::vec((0_u8..8, 0_u64..BLOCKS), 1..30),
        retained_disk_states_max in 1_usize..6,
    ) {
        let mut lab = Lab::new(RecorderSettings { retained_disk_states_max, ..RecorderSettings::default() });
        let mut taken = vec![lab.checkpoint()];
        for (at, (step, block)) in steps.into_iter().enumerate() {
            let request = |current| RollbackRequest { current, ..RollbackRequest::default() };
            let target = taken[usize::try_from(block).unwrap() % taken.len()].id;
            match step {
                0 => lab.write(block, 0),
                // The bytes of the base image, if the block has any there.
                1 => lab.write(block, block + 1_000_000),
                2 => lab.write(block, at as u64 + 1),
                3 => drop(lab.recorder.rollback(&mut lab.machine, target, &request(CurrentPolicy::Durable)).unwrap()),
                4 => drop(lab.recorder.rollback(&mut lab.machine, target, &request(CurrentPolicy::Staged)).unwrap()),
                5 => drop(lab.recorder.undo(&mut lab.machine, &request(CurrentPolicy::Durable))),
                _ => taken.push(lab.checkpoint()),
            }
        }
        taken.push(lab.checkpoint());
        let whole = lab.recorder.audit(&mut lab.machine).unwrap();
        prop_assert_eq!((whole.mismatched_blocks(), &whole.disks[0].not_compared[..]), (0, ""));
        prop_assert_eq!(lab.recorder.audit_status().mismatched_blocks(), 0);
        prop_assert!(lab.checkpoints().iter().all(|record| !record.doubtful));
    }
}
