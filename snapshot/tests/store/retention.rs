//! Checkpoints are removed and space is freed; the others are unchanged, at every instant, with concurrent readers and
//! writers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_guest::{Gfn, MachineState};
use retrovisor_snapshot::KeepReason::{
    Current, Daily, Hourly, Incident, Labelled, Last, LastGood, Monthly, Pinned, Quarantined, Undo,
};
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRequest, CompactOptions, Error, KeepReason, NewIncident, OperationKind,
    OperationStatus, PruneProgress, PruneStep, Recorder, RetentionPolicy, RollbackRequest, Store, Verdict,
    VerdictRecord,
};

use crate::toy::{Frame, Lab, Toy, open};

static SEEN: Schema = Schema { table: "fact_seen", columns: &[Column::new("count", Kind::Integer)] };

fn go_on(_: PruneProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes of all files of a store.
fn bytes(dir: &Path) -> u64 {
    let of = |dir: &Path| -> u64 {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    of(dir) + of(&dir.join("packs"))
}

/// The contents of every checkpoint.
fn images(store: &Store) -> BTreeMap<CheckpointId, (blake3::Hash, MachineState)> {
    let machines = store.catalogue().machines().unwrap();
    let records = machines.iter().flat_map(|machine| store.catalogue().checkpoints(machine.id).unwrap());
    records
        .map(|record| (record.id, (store.image_hash(record.id).unwrap(), store.state(record.id).unwrap())))
        .collect()
}

/// The remaining checkpoints have the same contents as before, also after the store is opened again.
fn check(dir: &Path, store: &Store, before: &BTreeMap<CheckpointId, (blake3::Hash, MachineState)>) {
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    let fresh = Store::open(dir, Access::ReadOnly).unwrap();
    for store in [store, &fresh] {
        for (id, now) in images(store) {
            assert_eq!(Some(&now), before.get(&id), "checkpoint {id}");
        }
    }
    let far = "SELECT count(*) FROM checkpoint WHERE keyframe_distance > 64 OR keyframe_rows < 0";
    assert_eq!(store.catalogue().query(far, &[], 1).unwrap().rows, [[Value::Integer(0)]]);
}

/// A history with rollbacks: the guest's writes follow from a seed.
fn history(lab: &mut Lab, checkpoints: u64, mut seed: u64) {
    let pages = lab.toy.image.frames.len() as u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for round in 0..checkpoints {
        for _ in 0..next(12) {
            let at = usize::try_from(next(pages)).unwrap();
            match next(8) {
                0 => lab.toy.set(at, Frame::Zero),
                1 => lab.toy.set(at, Frame::Removed),
                2 => lab.toy.scribble(at, next(20)),
                _ => lab.toy.scribble(at, 1000 + next(1 << 40)),
            }
        }
        lab.toy.image.device = vec![u8::try_from(next(256)).unwrap(); usize::try_from(next(9000)).unwrap()];
        lab.toy.image.registers.rip = round;
        let taken = lab.checkpoint();
        if round % 9 == 8 {
            let all = lab.store.catalogue().checkpoints(lab.machine).unwrap();
            let target = all[usize::try_from(next(all.len() as u64)).unwrap()].id;
            let request = RollbackRequest::default();
            lab.recorder.rollback(&mut lab.toy, target, &request).unwrap();
            if next(2) == 0 {
                lab.recorder.undo(&mut lab.toy, &request).unwrap();
            }
        }
        let rows = vec![vec![Value::from(round)]];
        lab.store.catalogue().record_facts(taken.id, &[Table { schema: &SEEN, rows }]).unwrap();
    }
}

#[test]
fn what_stays_is_what_it_was_whatever_goes() {
    for seed in 0..6 {
        let mut lab = Lab::new(200);
        history(&mut lab, 150, seed);
        let store = Arc::clone(&lab.store);
        let before = images(&store);
        for (keep, depth) in [(60, 4), (7, 1), (0, 0)] {
            // Pins in the middle: chains are joined around them.
            let all = store.catalogue().checkpoints(lab.machine).unwrap();
            for record in all.iter().step_by(11) {
                store.pin(record.id, keep > 0).unwrap();
            }
            let policy = RetentionPolicy { keep_last: keep, undo_depth: depth, ..RetentionPolicy::nothing() };
            let plan = store.plan_prune(&policy, None).unwrap();
            assert!(!plan.machines[0].removed.is_empty());
            let report = store.prune(&plan, &CompactOptions::default(), &mut go_on).unwrap();
            assert_eq!(report.checkpoints, plan.estimate.checkpoints);
            assert_eq!(report.compaction.contents_removed, plan.estimate.contents);
            let left = store.catalogue().checkpoints(lab.machine).unwrap();
            let kept: Vec<_> = plan.machines[0].kept.iter().map(|kept| kept.id).collect();
            assert_eq!(left.iter().map(|record| record.id).collect::<Vec<_>>(), kept);
            check(lab.dir.path(), &store, &before);
        }
        // The machine continues as if nothing had happened.
        lab.toy.scribble(3, 77);
        let next = lab.checkpoint();
        assert_eq!(next.changed_pages, 1);
        let first = store.catalogue().checkpoints(lab.machine).unwrap()[0].id;
        lab.recorder.rollback(&mut lab.toy, first, &RollbackRequest::default()).unwrap();
        assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
        // No table has rows of the removed checkpoints.
        for table in ["page_version", "keyframe", "state", "section", "fact_seen", "feature", "verdict"] {
            let sql =
                format!("SELECT count(*) FROM {table} WHERE checkpoint NOT IN (SELECT id FROM checkpoint)");
            assert_eq!(store.catalogue().query(&sql, &[], 1).unwrap().rows, [[Value::Integer(0)]], "{table}");
        }
    }
}

#[test]
fn every_rule_keeps_what_it_says() {
    let mut lab = Lab::new(16);
    let store = Arc::clone(&lab.store);
    let taken: Vec<_> = (0..40)
        .map(|round| {
            lab.toy.scribble(0, round);
            if round == 4 { lab.label("kept") } else { lab.checkpoint() }
        })
        .collect();
    let set_verdict = |at: usize, verdict| {
        let said = VerdictRecord { verdict, score: 0.0, p_value: None, reasons: vec![], features: vec![] };
        store.catalogue().set_verdict(taken[at].id, &said).unwrap();
    };
    set_verdict(2, Verdict::Bad);
    set_verdict(30, Verdict::Good);
    set_verdict(31, Verdict::Good);
    let incident = NewIncident {
        first_bad: taken[11].id,
        last_good: Some(taken[9].id),
        kind: "x".into(),
        summary: "x".into(),
        detail: serde_json::Value::Null,
        action: None,
    };
    store.catalogue().add_incident(lab.machine, &incident).unwrap();
    store.pin(taken[6].id, true).unwrap();
    let report = lab.recorder.rollback(&mut lab.toy, taken[33].id, &RollbackRequest::default()).unwrap();
    let why = |policy: &RetentionPolicy| -> BTreeMap<u64, Vec<KeepReason>> {
        let plan = store.plan_prune(policy, Some(lab.machine)).unwrap();
        plan.machines[0].kept.iter().map(|kept| (kept.sequence, kept.reasons.clone())).collect()
    };
    let nothing = RetentionPolicy::nothing();
    // The current one, the newest, the pinned one, the last good ancestor of the current one.
    let always =
        BTreeMap::from([(7, vec![Pinned]), (32, vec![LastGood]), (34, vec![Current]), (41, vec![Last])]);
    assert_eq!(why(&nothing), always);
    let with = |changes: &[(u64, KeepReason)]| {
        let mut expected = always.clone();
        for (sequence, reason) in changes {
            let reasons = expected.entry(*sequence).or_default();
            reasons.push(*reason);
            reasons.sort();
        }
        expected
    };
    let labelled = RetentionPolicy { keep_labelled: true, ..nothing.clone() };
    assert_eq!(why(&labelled), with(&[(5, Labelled)]));
    let bad = RetentionPolicy { keep_bad_days: None, ..nothing.clone() };
    assert_eq!(why(&bad), with(&[(3, Quarantined), (12, Incident), (10, Incident)]));
    let undo = RetentionPolicy { undo_depth: 1, ..nothing.clone() };
    assert_eq!(why(&undo), with(&[(41, Undo), (34, Undo)]));
    assert_eq!(report.current.unwrap().sequence, 41);

    // By age: two a day, for twenty days back.
    let times = rusqlite::Connection::open(lab.dir.path().join("catalogue.sqlite")).unwrap();
    times
        .execute_batch("UPDATE checkpoint SET taken_at_ms = 1700000000000 - (41 - sequence) * 12 * 3600000")
        .unwrap();
    drop(times);
    let hourly = RetentionPolicy { keep_hourly: 3, ..nothing.clone() };
    assert_eq!(why(&hourly), with(&[(41, Hourly), (40, Hourly), (39, Hourly)]));
    let daily = RetentionPolicy { keep_daily: 3, ..nothing.clone() };
    // 1700000000 is 22:13 UTC: 41 and 40 were taken on one day.
    assert_eq!(why(&daily), with(&[(41, Daily), (39, Daily), (37, Daily)]));
    let monthly = RetentionPolicy { keep_monthly: 9, ..nothing };
    // The fourteenth of November: October's newest was taken 14 days before.
    assert_eq!(why(&monthly), with(&[(41, Monthly), (13, Monthly)]));
}

#[test]
fn space_comes_back_on_the_disk() {
    let mut lab = Lab::new(3000);
    let store = Arc::clone(&lab.store);
    for round in 0..40_u64 {
        for page in 0..400 {
            lab.toy.scribble(usize::try_from((round * 131 + page * 7) % 3000).unwrap(), round * 1000 + page);
        }
        lab.checkpoint();
    }
    let before = bytes(lab.dir.path());
    let last = images(&store).pop_last().unwrap();
    let policy = RetentionPolicy { keep_last: 1, ..RetentionPolicy::nothing() };
    let plan = store.plan_prune(&policy, None).unwrap();
    let report = store.prune(&plan, &CompactOptions::default(), &mut go_on).unwrap();
    let after = bytes(lab.dir.path());
    // 16,000 pages were written, fewer than 3,000 are left.
    assert!(after * 3 < before, "{before} → {after}");
    assert!(report.compaction.bytes_freed <= before - after + before / 10, "{report:?}");
    assert!(before - after >= plan.estimate.pack_bytes * 9 / 10, "{:?} {before} → {after}", plan.estimate);
    assert_eq!(images(&store), BTreeMap::from([last]));
    // Nothing is left to do.
    let again = store.compact(&CompactOptions::default(), &mut go_on).unwrap();
    assert_eq!((again.contents_removed, again.packs_written), (0, 0));
}

#[test]
fn stopped_after_any_step_everything_is_whole_and_the_rest_can_be_done_later() {
    let mut stop_at = 0;
    loop {
        let mut lab = Lab::new(100);
        history(&mut lab, 40, 3);
        let store = Arc::clone(&lab.store);
        let before = images(&store);
        let policy = RetentionPolicy { keep_last: 5, ..RetentionPolicy::nothing() };
        let plan = store.plan_prune(&policy, None).unwrap();
        let mut left = stop_at;
        let mut step = |_: PruneProgress| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            ControlFlow::Continue(())
        };
        let report = store.prune(&plan, &CompactOptions::default(), &mut step).unwrap();
        check(lab.dir.path(), &store, &before);
        let operations = store.catalogue().operations(lab.machine).unwrap();
        let last = operations.last().unwrap();
        assert_eq!((last.kind, last.status), (OperationKind::Prune, OperationStatus::Done));
        let plan = store.plan_prune(&policy, None).unwrap();
        store.prune(&plan, &CompactOptions::default(), &mut go_on).unwrap();
        check(lab.dir.path(), &store, &before);
        if !report.stopped {
            break;
        }
        stop_at += 1;
    }
    assert!(stop_at > 6, "{stop_at}");
}

#[test]
fn an_undo_to_what_was_pruned_says_so() {
    let mut lab = Lab::new(16);
    lab.toy.scribble(0, 1);
    let first = lab.checkpoint();
    lab.toy.scribble(0, 2);
    lab.checkpoint();
    let report = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default()).unwrap();
    let current = report.current.unwrap();
    lab.toy.scribble(0, 3);
    lab.checkpoint();
    let store = Arc::clone(&lab.store);
    let plan = store.plan_prune(&RetentionPolicy::nothing(), None).unwrap();
    store.prune(&plan, &CompactOptions::default(), &mut go_on).unwrap();
    let refused = lab.recorder.undo(&mut lab.toy, &RollbackRequest::default());
    let Err(Error::Pruned { name, sequence }) = &refused else { panic!("{refused:?}") };
    assert_eq!((name, *sequence), (&current.name, current.sequence));
    assert!(!lab.toy.paused);
    // The log still names it.
    let logged =
        store.catalogue().query("SELECT before FROM v_operation WHERE kind = 'rollback'", &[], 1).unwrap();
    assert_eq!(logged.rows, [[Value::Text(current.name)]]);
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn contents_that_come_again_after_they_were_garbage_are_there() {
    let mut lab = Lab::new(8);
    let store = Arc::clone(&lab.store);
    for (frame, seed) in [(0, 1), (0, 2), (1, 3)] {
        lab.toy.scribble(frame, seed);
        lab.checkpoint();
    }
    let nothing = RetentionPolicy::nothing();
    let mut brought = false;
    let plan = store.plan_prune(&nothing, None).unwrap();
    // Between marking and sweeping, the guest writes contents that were just found to be garbage.
    let Lab { toy, recorder, dir, .. } = &mut lab;
    let report = store
        .prune(&plan, &CompactOptions::default(), &mut |at| {
            if at.step == PruneStep::Sweep && !brought {
                brought = true;
                toy.scribble(5, 1);
                recorder.checkpoint(toy, &CheckpointRequest::default()).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(brought);
    assert_eq!(report.compaction.contents_removed, 0);
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    // After the removal they are new contents.
    toy.set(5, Frame::Zero);
    recorder.checkpoint(toy, &CheckpointRequest::default()).unwrap();
    for keep in [2, 1] {
        let policy = RetentionPolicy { keep_last: keep, ..RetentionPolicy::nothing() };
        let plan = store.plan_prune(&policy, None).unwrap();
        store.prune(&plan, &CompactOptions::default(), &mut go_on).unwrap();
    }
    toy.scribble(6, 1);
    let record = recorder.checkpoint(toy, &CheckpointRequest::default()).unwrap().record;
    assert_eq!((record.changed_pages, record.new_pages), (1, 1));
    let fresh = Store::open(dir.path(), Access::ReadOnly).unwrap();
    assert_eq!(fresh.image_hash(record.id).unwrap(), retrovisor_snapshot::image_hash(toy).unwrap());
    assert_eq!(fresh.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn numbers_are_not_given_twice() {
    let mut lab = Lab::new(8);
    lab.toy.scribble(0, 1);
    lab.checkpoint();
    lab.toy.set(0, Frame::Zero);
    lab.checkpoint();
    let plan = lab.store.plan_prune(&RetentionPolicy::nothing(), None).unwrap();
    lab.store.prune(&plan, &CompactOptions::default(), &mut go_on).unwrap();
    let Lab { dir, store, recorder, mut toy, machine } = lab;
    assert_eq!(std::fs::read_dir(dir.path().join("packs")).unwrap().count(), 0);
    drop((store, recorder));
    let store = open(dir.path());
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    toy.scribble(1, 2);
    let record = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    let history = store.catalogue().page_history(machine, Gfn(1)).unwrap();
    assert!(history[0].content.code() > 2, "{history:?}");
    assert_eq!(record.sequence, 3);
    assert!(!dir.path().join("packs/000001.pack").exists());
}

#[test]
fn a_removed_machine_leaves_nothing_in_the_store_and_the_others_whole() {
    let mut lab = Lab::new(64);
    history(&mut lab, 40, 1);
    let identity = Toy::named("other", &lab.toy.identity.layout);
    let other = lab.store.catalogue().add_machine(&identity).unwrap().id;
    let mut second = Toy { identity, ..Toy::new(&lab.toy.identity.layout) };
    second.scribble(5, 77);
    let _kept = Recorder::fresh(Arc::clone(&lab.store), other)
        .unwrap()
        .checkpoint(&mut second, &CheckpointRequest::default())
        .unwrap();
    let before = images(&lab.store);
    let size = bytes(lab.dir.path());
    lab.store.pin(lab.store.catalogue().checkpoints(lab.machine).unwrap()[3].id, true).unwrap();
    let plan = lab.store.plan_removal(lab.machine).unwrap();
    assert_eq!((plan.checkpoints, plan.branches), (before.len() as u64 - 1, vec![]));
    // Stopped after its first batch, and removed again.
    let mut steps = 0;
    let stopped = lab.store.remove_machine(lab.machine, &mut |_| {
        steps += 1;
        if steps > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(stopped.unwrap().stopped);
    assert!(lab.store.catalogue().machines().unwrap().iter().any(|machine| machine.id == lab.machine));
    let report = lab.store.remove_machine(lab.machine, &mut go_on).unwrap();
    assert!(!report.stopped && report.compaction.bytes_freed > 0, "{report:?}");
    let left: Vec<_> =
        lab.store.catalogue().machines().unwrap().into_iter().map(|machine| machine.id).collect();
    assert_eq!(left, [other]);
    check(lab.dir.path(), &lab.store, &before);
    assert!(bytes(lab.dir.path()) < size);
    for table in ["checkpoint", "operation", "timeline", "pruned", "event"] {
        let count = format!("SELECT count(*) FROM {table} t WHERE t.machine <> ?1");
        let rows = lab.store.catalogue().query(&count, &[Value::Integer(other.0)], 1).unwrap().rows;
        assert_eq!(rows, [[Value::Integer(0)]], "{table}");
    }
}
