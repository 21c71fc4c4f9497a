//! A machine's whole history is exported to a file and imported into another store; an incomplete or invalid archive
//! imports nothing.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_guest::{BLOCK_SIZE, Machine, MemoryLayout};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    CheckpointRequest, CompactOptions, Error, ExportProgress, ImportReport, NewIncident, Recorder,
    RetentionPolicy, RollbackRequest, Store, Verdict, VerdictRecord,
};

use crate::toy::{Frame, Lab, Toy, open, page_of, quick_dir};

static SEEN: Schema = Schema {
    table: "fact_seen",
    columns: &[
        Column::new("count", Kind::Integer),
        Column::new("share", Kind::Real),
        Column::new("what", Kind::Text),
    ],
};

fn go_on(_: ExportProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A history with rollbacks, labels, pins, verdicts, incidents and facts.
fn history(lab: &mut Lab, checkpoints: u64) {
    let pages = lab.toy.image.frames.len();
    for round in 0..checkpoints {
        for at in 0..5 {
            let place = usize::try_from(round * 7 + at * 31).unwrap() % pages;
            match (round + at) % 9 {
                0 => lab.toy.set(place, Frame::Zero),
                1 => lab.toy.set(place, Frame::Removed),
                _ => lab.toy.scribble(place, round * 3 + at),
            }
        }
        lab.toy.image.device =
            vec![u8::try_from(round % 250).unwrap(); usize::try_from(round * 211 % 9000).unwrap()];
        lab.toy.image.registers.rip = round;
        let taken = if round % 10 == 3 { lab.label(&format!("at {round}")) } else { lab.checkpoint() };
        let catalogue = lab.store.catalogue();
        let share = if round % 2 == 0 {
            Value::Null
        } else {
            Value::Real(f64::from(u32::try_from(round).unwrap()) * 0.1)
        };
        let rows = vec![vec![Value::Integer(round.cast_signed() - 5), share, Value::Text("é\n".into())]];
        catalogue.record_facts(taken.id, &[Table { schema: &SEEN, rows }]).unwrap();
        let verdict = VerdictRecord {
            verdict: if round == 13 { Verdict::Bad } else { Verdict::Good },
            score: 0.25,
            p_value: None,
            reasons: vec!["it is so".into()],
            features: vec![
                ("entropy".into(), 1.5),
                ("share".into(), f64::from(u32::try_from(round).unwrap()) * 0.1),
            ],
        };
        catalogue.set_verdict(taken.id, &verdict).unwrap();
        if round == 13 {
            lab.store.pin(taken.id, true).unwrap();
            let last_good = catalogue.checkpoints(lab.machine).unwrap()[5].id;
            let incident = NewIncident {
                first_bad: taken.id,
                last_good: Some(last_good),
                kind: "test".into(),
                summary: "it went bad".into(),
                detail: serde_json::json!({ "a": 1 }),
                action: None,
            };
            catalogue.add_incident(lab.machine, &incident).unwrap();
        }
        if round % 12 == 11 {
            let all = lab.store.catalogue().checkpoints(lab.machine).unwrap();
            let target = all[all.len() / 2].id;
            lab.recorder.rollback(&mut lab.toy, target, &RollbackRequest::default()).unwrap();
        }
    }
}

/// The rows about a machine in all tables, without numbers that differ from store to store.
fn tables(store: &Store, machine: &str, with_names: bool) -> Vec<Vec<Vec<Value>>> {
    let queries = [
        "SELECT c.sequence, p.sequence, c.label, c.pinned, c.kind, c.taken_at_ms, c.pause_us, c.durable_us, c.dirty_pages,
            c.changed_pages, c.new_pages, c.zero_pages, c.stored_bytes,
            (SELECT count(*) FROM timeline t WHERE t.machine = c.machine AND t.id < c.timeline)
            FROM checkpoint c LEFT JOIN checkpoint p ON p.id = c.parent JOIN machine m ON m.id = c.machine
            WHERE m.name = ?1 ORDER BY c.sequence",
        "SELECT c.sequence, v.verdict, v.score, v.p_value, v.reasons, f.name, f.value FROM machine m
            JOIN checkpoint c ON c.machine = m.id JOIN verdict v ON v.checkpoint = c.id
            LEFT JOIN feature f ON f.checkpoint = c.id WHERE m.name = ?1 ORDER BY 1, 6",
        "SELECT first_bad_sequence, summary, kind, detail, action, opened_at_ms FROM v_incident WHERE machine = ?1",
        "SELECT sequence, count, share, what FROM v_fact_seen WHERE machine = ?1 ORDER BY 1",
        "SELECT o.kind, o.status, o.at_ms, b.sequence, a.sequence, o.detail FROM operation o
            JOIN machine m ON m.id = o.machine LEFT JOIN checkpoint b ON b.id = o.before
            LEFT JOIN checkpoint a ON a.id = o.after WHERE m.name = ?1 AND o.kind <> 'import' ORDER BY o.id",
        "SELECT t.created_at_ms, c.sequence FROM timeline t JOIN machine m ON m.id = t.machine
            LEFT JOIN checkpoint c ON c.id = t.origin WHERE m.name = ?1 ORDER BY t.id",
        "SELECT p.sequence, p.name, p.taken_at_ms FROM pruned p JOIN machine m ON m.id = p.machine
            WHERE m.name = ?1 ORDER BY 1",
        "SELECT c.sequence, m.timeline IS c.timeline FROM machine m JOIN checkpoint c ON c.id = m.checkpoint
            WHERE m.name = ?1",
    ];
    let names = "SELECT sequence, name FROM v_checkpoint WHERE machine = ?1 ORDER BY 1";
    let ask = |sql: &str| store.catalogue().query(sql, &[Value::Text(machine.into())], 100_000).unwrap().rows;
    queries.into_iter().chain(with_names.then_some(names)).map(ask).collect()
}

/// The machine is the same in both stores: its contents and its rows.
fn same(here: &Store, name: &str, there: &Store, other: &str, with_names: bool) {
    assert_eq!(tables(here, name, with_names), tables(there, other, with_names));
    let of = |store: &Store, name: &str| {
        let id = store.catalogue().machine(name).unwrap().id;
        store.catalogue().checkpoints(id).unwrap()
    };
    for (a, b) in of(here, name).iter().zip(of(there, other)) {
        assert_eq!(here.image_hash(a.id).unwrap(), there.image_hash(b.id).unwrap(), "@{}", a.sequence);
        assert_eq!(here.state(a.id).unwrap(), there.state(b.id).unwrap(), "@{}", a.sequence);
    }
    assert_eq!(there.verify(&mut |_| ()).unwrap().damaged, []);
}

fn archive(lab: &Lab) -> PathBuf {
    let path = lab.dir.path().join("toy.archive");
    lab.store.export_archive(lab.machine, &path, &mut go_on).unwrap();
    path
}

fn bring(store: &Store, name: Option<&str>, path: &Path) -> ImportReport {
    store.import_archive(name, path, &mut go_on).unwrap()
}

fn count(store: &Store, table: &str) -> Value {
    let rows = store.catalogue().query(&format!("SELECT count(*) FROM {table}"), &[], 1).unwrap().rows;
    rows[0][0].clone()
}

#[test]
fn a_history_comes_back_in_another_store() {
    let mut lab = Lab::new(300);
    // More than one full map.
    history(&mut lab, 150);
    let path = lab.dir.path().join("toy.archive");
    let report = lab.store.export_archive(lab.machine, &path, &mut go_on).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.len()), (0o600, report.length_bytes));
    assert_eq!(Value::Integer(report.contents.cast_signed()), count(&lab.store, "content"));
    let again = lab.store.export_archive(lab.machine, &path, &mut go_on);
    assert!(matches!(again, Err(Error::Exists { .. })));

    // Another store, with machines in it.
    let mut other = Lab::new(300);
    history(&mut other, 20);
    let before = tables(&other.store, "toy", true);
    let brought = bring(&other.store, Some("guest"), &path);
    assert_eq!((brought.machine.as_str(), brought.checkpoints), ("guest", report.checkpoints));
    // The other machine wrote some of the same pages.
    assert!(brought.new_contents < report.contents);
    same(&lab.store, "toy", &other.store, "guest", true);
    assert_eq!(tables(&other.store, "toy", true), before);
    // It is a usable machine: it can be restored, and recorded.
    let machine = other.store.catalogue().machine("guest").unwrap();
    let mut recorder = Recorder::new(Arc::clone(&other.store), machine.id).unwrap();
    let mut toy = Toy::new(&lab.toy.identity.layout);
    toy.identity.name = "guest".into();
    recorder.restore(&mut toy, brought.newest, &RollbackRequest::default()).unwrap();
    toy.scribble(4, 4);
    let next = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    assert_eq!(next.parent, Some(brought.newest));
    assert_eq!(other.store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn twice_in_a_store_means_contents_once() {
    let mut lab = Lab::new(200);
    history(&mut lab, 30);
    let path = archive(&lab);
    let dir = quick_dir();
    let store = open(dir.path());
    bring(&store, None, &path);
    let contents = count(&store, "content");
    let second = bring(&store, Some("copy"), &path);
    assert_eq!((second.new_contents, second.stored_bytes), (0, 0));
    assert_eq!(count(&store, "content"), contents);
    same(&lab.store, "toy", &store, "toy", true);
    // Its short ids are new: each identifies one checkpoint.
    same(&lab.store, "toy", &store, "copy", false);
    assert!(matches!(store.import_archive(None, &path, &mut go_on), Err(Error::Exists { .. })));
    // Also in the original store.
    assert_eq!(bring(&lab.store, Some("copy"), &path).new_contents, 0);
    same(&lab.store, "toy", &lab.store, "copy", false);
    // The imported machine can be exported again.
    let third = lab.dir.path().join("third.archive");
    let copy = lab.store.catalogue().machine("copy").unwrap().id;
    lab.store.export_archive(copy, &third, &mut go_on).unwrap();
    let last = quick_dir();
    let last = open(last.path());
    bring(&last, Some("toy"), &third);
    same(&lab.store, "copy", &last, "toy", true);
}

#[test]
fn a_pruned_history_comes_back() {
    let mut lab = Lab::new(200);
    history(&mut lab, 120);
    let policy = RetentionPolicy { keep_last: 20, undo_depth: 2, ..RetentionPolicy::nothing() };
    let plan = lab.store.plan_prune(&policy, None).unwrap();
    let report =
        lab.store.prune(&plan, &CompactOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.checkpoints > 50);
    let path = archive(&lab);
    let dir = quick_dir();
    let store = open(dir.path());
    bring(&store, None, &path);
    same(&lab.store, "toy", &store, "toy", true);
    assert_ne!(count(&store, "pruned"), Value::Integer(0));
}

#[test]
fn disks_come_along() {
    let dir = quick_dir();
    let store = open(&dir.path().join("a"));
    let machine = MemoryMachine::new("m", MemoryLayout::flat(16 * 4096).unwrap()).unwrap();
    let mut machine = machine.with_disk(vec![0; 90 * BLOCK_SIZE - 512]);
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    for round in 0..70 {
        let at = (round * 7 % 80) * BLOCK_SIZE;
        let page = if round % 5 == 4 { [0; BLOCK_SIZE] } else { page_of(round as u64) };
        machine.disk_mut()[at..at + BLOCK_SIZE].copy_from_slice(&page);
        let taken = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record;
        if round % 20 == 19 {
            let target = store.catalogue().ancestry(taken.id).unwrap()[3].id;
            recorder.rollback(&mut machine, target, &RollbackRequest::default()).unwrap();
        }
    }
    let path = dir.path().join("m.archive");
    store.export_archive(id, &path, &mut go_on).unwrap();
    let there = open(&dir.path().join("b"));
    // Numbers of disks differ.
    for name in ["x", "y"] {
        bring(&there, Some(name), &path);
    }
    let copy = there.catalogue().machine("y").unwrap().id;
    let pairs = store.catalogue().checkpoints(id).unwrap();
    for (a, b) in pairs.iter().zip(there.catalogue().checkpoints(copy).unwrap()) {
        let of = |store: &Arc<Store>, at| {
            let mut out = std::io::Cursor::new(Vec::new());
            let image = store.disk(at, "d0").unwrap();
            image
                .export(&mut out, &mut |_, page| {
                    page.fill(0);
                    Ok(())
                })
                .unwrap();
            out.into_inner()
        };
        assert_eq!(of(&store, a.id), of(&there, b.id));
        assert_eq!(store.image_hash(a.id).unwrap(), there.image_hash(b.id).unwrap());
    }
    assert_eq!(there.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn what_is_no_whole_archive_brings_nothing() {
    let mut lab = Lab::new(60);
    history(&mut lab, 14);
    let whole = fs::read(archive(&lab)).unwrap();
    let dir = quick_dir();
    let store = open(&dir.path().join("store"));
    let torn = dir.path().join("torn");
    let refused = |bytes: &[u8], why: &str| {
        fs::write(&torn, bytes).unwrap();
        let error = store.import_archive(None, &torn, &mut go_on).unwrap_err();
        assert!(matches!(error, Error::NotReadable { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.to_string().contains("Nothing was imported"), "{error}");
    };
    let mut changed = whole.clone();
    for at in (0..80).chain((80..whole.len()).step_by(97)).chain(whole.len() - 50..whole.len()) {
        changed[at] ^= 1 << (at % 8);
        refused(&changed, "");
        changed[at] = whole[at];
    }
    for length in (0..100).chain((100..whole.len()).step_by(211)).chain(whole.len() - 50..whole.len()) {
        refused(&whole[..length], "");
    }
    refused(&whole[..whole.len() - 9], "cut short");
    changed.extend([0]);
    refused(&changed, "goes on after its end");
    changed.pop();
    changed[8] = 3;
    refused(&changed, "has format 3");
    refused(b"no archive at all, but long enough", "no archive of a machine");
    // Stopped in the middle.
    fs::write(&torn, &whole).unwrap();
    let stop = &mut |_: ExportProgress| ControlFlow::Break(());
    assert!(matches!(store.import_archive(None, &torn, stop), Err(Error::Stopped)));
    let left = lab.dir.path().join("left");
    fs::create_dir(&left).unwrap();
    assert!(matches!(lab.store.export_archive(lab.machine, &left.join("a"), stop), Err(Error::Stopped)));
    assert_eq!(fs::read_dir(&left).unwrap().count(), 0);

    for table in ["machine", "checkpoint", "content", "timeline", "operation"] {
        assert_eq!(count(&store, table), Value::Integer(0), "{table}");
    }
    assert_eq!(store.catalogue().fact_tables().unwrap(), Vec::<String>::new());
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    bring(&store, None, &torn);
    same(&lab.store, "toy", &store, "toy", true);
}

/// Records with right hashes and wrong contents.
#[test]
fn forged_archives_bring_nothing() {
    let mut lab = Lab::new(60);
    history(&mut lab, 14);
    let whole = fs::read(archive(&lab)).unwrap();
    let records = split(&whole);
    let dir = quick_dir();
    let store = open(&dir.path().join("store"));
    let forged = dir.path().join("forged");
    let mut tried = 0;
    for (at, (_, body)) in records.iter().enumerate() {
        let places: Vec<usize> = (0..body.len()).step_by(1 + body.len() / 12).collect();
        for place in places {
            let mut records = records.clone();
            records[at].1[place] ^= 0x15;
            fs::write(&forged, join(&records)).unwrap();
            let name = format!("m{at}-{place}");
            // It is refused, or is a valid but different history.
            match store.import_archive(Some(&name), &forged, &mut go_on) {
                Ok(_) => tried += 1,
                Err(error) => assert!(matches!(error, Error::NotReadable { .. }), "{error}"),
            }
        }
        let mut without = records.clone();
        without.remove(at);
        fs::write(&forged, join(&without)).unwrap();
        let error = store.import_archive(Some("gone"), &forged, &mut go_on).unwrap_err();
        assert!(matches!(error, Error::NotReadable { .. }), "{at}: {error}");
        let mut twice = records.clone();
        twice.insert(at, records[at].clone());
        fs::write(&forged, join(&twice)).unwrap();
        let error = store.import_archive(Some("twice"), &forged, &mut go_on).unwrap_err();
        assert!(matches!(error, Error::NotReadable { .. }), "{at}: {error}");
    }
    assert!(tried > 0);
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    for machine in store.catalogue().machines().unwrap() {
        for record in store.catalogue().checkpoints(machine.id).unwrap() {
            store.image_hash(record.id).unwrap();
            store.state(record.id).unwrap();
        }
        store.catalogue().operations(machine.id).unwrap();
        store.catalogue().incidents(machine.id).unwrap();
    }
}

fn split(whole: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut at, mut records) = (16, Vec::new());
    while at < whole.len() {
        let length = u32::from_le_bytes(whole[at + 1..at + 5].try_into().unwrap()) as usize;
        records.push((whole[at], whole[at + 5..at + 5 + length].to_vec()));
        at += 5 + length + 32;
    }
    records
}

fn join(records: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"RVARCHIV\x01\0\0\0\0\0\0\0".to_vec();
    let mut chain = blake3::hash(&bytes);
    for (kind, body) in records {
        let mut head = vec![*kind];
        head.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        chain = blake3::Hasher::new().update(chain.as_bytes()).update(&head).update(body).finalize();
        bytes.extend(head);
        bytes.extend(body);
        bytes.extend(chain.as_bytes());
    }
    bytes
}
