//! Stores of earlier versions can always be opened: for each format there is one under `tests/fixtures`, with a
//! description of its contents. Each was made by `the_fixture_of_this_format` below, run with the program of that
//! version.
//!
//! A fixture is one zstd stream of files, each: length of the name (4 bytes), name, length (8 bytes), bytes.

mod content;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_guest::{Gpa, Machine, MemoryLayout, MemorySlot};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    Access, CheckpointKind, CheckpointRequest, CompactOptions, DesiredState, Error, EventId, NewIncident,
    OperationStatus, Recorder, RetentionPolicy, RollbackRequest, Store, Verdict, VerdictRecord,
};

use self::content::{Content, content, sorted};
use crate::toy::{Frame, Toy, open, page_of, quick_dir};

static SEEN: Schema = Schema {
    table: "fact_seen",
    columns: &[Column::new("count", Kind::Integer), Column::new("word", Kind::Text)],
};

/// Records the contents of a fixture: two machines, more than one full map, timelines, and all user data.
fn fill(store: &Arc<Store>) {
    let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
    let gap = MemoryLayout::new(vec![slot(0, 40), slot(1 << 32, 24)]).unwrap();
    let mut web = Toy::new(&gap);
    web.identity.name = "web".into();
    web.identity.vcpus = 1;
    let web_id = store.catalogue().add_machine(&web.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(store), web_id).unwrap();
    let take = |recorder: &mut Recorder, toy: &mut Toy, label: Option<&str>| {
        let kind = if label.is_some() { CheckpointKind::Manual } else { CheckpointKind::Automatic };
        let request = CheckpointRequest { label: label.map(str::to_owned), kind };
        recorder.checkpoint(toy, &request).unwrap().record
    };
    for round in 0..70_u64 {
        // Few contents, which repeat: the archive stays small.
        let at = usize::try_from(round * 7 % 64).unwrap();
        match round % 5 {
            0 => web.set(at, Frame::Removed),
            1 => web.set(at, Frame::Zero),
            _ => web.scribble(at, round % 12),
        }
        web.image.registers.rip = 0xffff_ffff_8100_0000 + round;
        web.image.device = vec![u8::try_from(round % 3).unwrap(); 5000];
        let label = (round == 20).then_some("before the update");
        let taken = take(&mut recorder, &mut web, label);
        // Some in a row, which differ little, and some alone.
        if round % 10 == 0 || (40..50).contains(&round) {
            let rows = vec![vec![Value::from(round), "ten".into()], vec![Value::Null, "none".into()]];
            store.catalogue().record_facts(taken.id, &[Table { schema: &SEEN, rows }]).unwrap();
        }
        let verdict = match round {
            0..60 => Verdict::Good,
            66.. => Verdict::Bad,
            _ => Verdict::Suspect,
        };
        let said = VerdictRecord {
            verdict,
            score: 0.25,
            p_value: Some(0.5),
            reasons: vec!["because".into()],
            features: vec![("tasks".into(), 3.0)],
        };
        store.catalogue().set_verdict(taken.id, &said).unwrap();
    }
    let find = |spec: &str| store.catalogue().resolve(web_id, spec).unwrap().id;
    let incident = NewIncident {
        first_bad: find("@67"),
        last_good: Some(find("@60")),
        kind: "rootkit".into(),
        summary: "a system call was hooked".into(),
        detail: serde_json::json!({ "evidence": ["sys_call_table[62]"] }),
        action: None,
    };
    store.catalogue().add_incident(web_id, &incident).unwrap();
    let request = |why: &str| RollbackRequest {
        detail: serde_json::json!({ "reason": why }),
        ..RollbackRequest::default()
    };
    recorder.rollback(&mut web, find("last-good"), &request("hooked")).unwrap();
    web.scribble(3, 99);
    let after = take(&mut recorder, &mut web, Some("after"));
    let rows = vec![vec![Value::Integer(5), "after".into()], vec![Value::Null, "none".into()]];
    store.catalogue().record_facts(after.id, &[Table { schema: &SEEN, rows }]).unwrap();
    recorder.undo(&mut web, &request("to look at it")).unwrap();
    recorder.redo(&mut web, &request("enough")).unwrap();

    let mut twin = Toy::new(&gap);
    twin.identity.name = "twin".into();
    let twin_id = store.catalogue().add_machine(&twin.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(store), twin_id).unwrap();
    recorder.restore(&mut twin, find("before the update"), &request("branch")).unwrap();
    twin.resume().unwrap();
    twin.scribble(60, 98);
    take(&mut recorder, &mut twin, None);
    fill_disks(store);
}

/// A machine with a disk, of which checkpoints were pinned and pruned.
fn fill_disks(store: &Arc<Store>) {
    let base = vec![7; 200 * 4096];
    let mut machine =
        MemoryMachine::new("disks", MemoryLayout::flat(16 * 4096).unwrap()).unwrap().with_disk(base);
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(store), id).unwrap();
    let mut all = Vec::new();
    for round in 0..12_u8 {
        machine.poke(Gpa(u64::from(round) * 4096), &page_of(round.into())).unwrap();
        let at = usize::from(round % 5) * 40 * 4096;
        machine.disk_mut()[at..at + 4096].fill(round);
        all.push(recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id);
        if round == 8 {
            recorder.rollback(&mut machine, all[3], &RollbackRequest::default()).unwrap();
        }
    }
    store.pin(all[2], true).unwrap();
    let policy = RetentionPolicy { keep_last: 4, undo_depth: 0, ..RetentionPolicy::nothing() };
    let plan = store.plan_prune(&policy, Some(id)).unwrap();
    store.prune(&plan, &CompactOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Not a test of its own: writes the fixture of this program's format, unless it exists.
#[test]
#[ignore = "makes a file of the source tree"]
fn the_fixture_of_this_format() {
    let dir = quick_dir();
    let store = open(dir.path());
    fill(&store);
    let expected = serde_json::to_string_pretty(&content(&store)).unwrap();
    drop(store);
    let format: i64 = rusqlite::Connection::open(dir.path().join("catalogue.sqlite"))
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    let mut bytes = Vec::new();
    for name in ["catalogue.sqlite", "packs/000001.pack", "key"] {
        let file = fs::read(dir.path().join(name)).unwrap();
        bytes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend((file.len() as u64).to_le_bytes());
        bytes.extend(file);
    }
    let archive = fixtures().join(format!("format-{format}.zst"));
    assert!(!archive.exists(), "{} is there: fixtures are never replaced", archive.display());
    fs::write(archive, zstd::encode_all(&bytes[..], 19).unwrap()).unwrap();
    fs::write(fixtures().join(format!("format-{format}.json")), expected + "\n").unwrap();
}

/// Unpacks a fixture, and returns its description.
fn unpack(format: i64, dir: &Path) -> Content {
    let archive = fs::read(fixtures().join(format!("format-{format}.zst"))).unwrap();
    let bytes = zstd::decode_all(&archive[..]).unwrap();
    let mut rest = &bytes[..];
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at(count);
        rest = tail;
        (head, tail.is_empty())
    };
    fs::create_dir(dir.join("packs")).unwrap();
    loop {
        let length = u32::from_le_bytes(take(4).0.try_into().unwrap());
        let name = std::str::from_utf8(take(length as usize).0).unwrap();
        let length = u64::from_le_bytes(take(8).0.try_into().unwrap());
        let (file, last) = take(usize::try_from(length).unwrap());
        fs::write(dir.join(name), file).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        if last {
            break;
        }
    }
    let expected = fs::read_to_string(fixtures().join(format!("format-{format}.json"))).unwrap();
    let mut content: Content = serde_json::from_str(&expected).unwrap();
    for machine in content.machines.values_mut() {
        for checkpoint in &mut machine.checkpoints {
            checkpoint.facts = sorted(std::mem::take(&mut checkpoint.facts));
        }
    }
    content
}

fn formats() -> Vec<i64> {
    let mut found: Vec<i64> = fs::read_dir(fixtures())
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().to_str()?.strip_prefix("format-")?.strip_suffix(".zst")?.parse().ok()
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn every_format_there_was_opens_verifies_and_restores() {
    assert!(formats().starts_with(&[1, 2, 3]));
    for format in formats() {
        let dir = quick_dir();
        let expected = unpack(format, dir.path());
        let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
        assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, [], "format {format}");
        assert_eq!(content(&store), expected, "format {format}");
        assert_eq!(format_of(dir.path()), 4);
        has_format_3(&store);
        goes_on(&store, &expected);
        drop(store);
        // From now on it has the newest format: readers open it.
        let store = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
        assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, [], "format {format}");
    }
}

fn format_of(dir: &Path) -> i64 {
    let connection = rusqlite::Connection::open(dir.join("catalogue.sqlite")).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// What format 3 added has its defaults, and can be written.
fn has_format_3(store: &Store) {
    let catalogue = store.catalogue();
    let machine = catalogue.machine("web").unwrap();
    assert_eq!(machine.desired_state, DesiredState::Running);
    assert!(catalogue.checkpoints(machine.id).unwrap().iter().all(|record| !record.doubtful));
    assert!(catalogue.operations(machine.id).unwrap().iter().all(|record| record.half_written.is_none()));
    assert_eq!(catalogue.events_since(machine.id, EventId(0), 9).unwrap(), []);
    catalogue.set_desired_state(machine.id, DesiredState::Paused).unwrap();
    assert_eq!(catalogue.machine("web").unwrap().desired_state, DesiredState::Paused);
    let rows = catalogue.query("SELECT current FROM v_timeline WHERE machine = 'web'", &[], 9).unwrap().rows;
    assert_eq!(rows.iter().filter(|row| row[0] == Value::Integer(1)).count(), 1);
}

/// An operation that an older version left started may have left any process half written.
#[test]
fn an_operation_that_format_2_left_started_is_failed_and_concerns_any_process() {
    let dir = quick_dir();
    unpack(2, dir.path());
    let connection = rusqlite::Connection::open(dir.path().join("catalogue.sqlite")).unwrap();
    connection
        .execute("UPDATE operation SET status = 'started' WHERE id = (SELECT max(id) FROM operation WHERE kind = 'redo')", [])
        .unwrap();
    drop(connection);
    let store = open(dir.path());
    let web = store.catalogue().machine("web").unwrap().id;
    let interrupted = store.catalogue().interrupted(web).unwrap().unwrap();
    assert_eq!(interrupted.status, OperationStatus::Failed);
    assert!(interrupted.concerns_process("any"));
}

/// A machine of the fixture is restored, recorded and rolled back.
fn goes_on(store: &Arc<Store>, expected: &Content) {
    let record = store.catalogue().machine("web").unwrap();
    let mut toy = Toy::new(&record.identity.layout);
    toy.identity = record.identity.clone();
    let mut recorder = Recorder::new(Arc::clone(store), record.id).unwrap();
    let of = &expected.machines["web"];
    for wanted in [&of.checkpoints[0], &of.checkpoints[20], &of.checkpoints[66]] {
        let target = store.catalogue().resolve(record.id, &wanted.name).unwrap();
        recorder.restore(&mut toy, target.id, &RollbackRequest::default()).unwrap();
        assert_eq!(retrovisor_snapshot::image_hash(&toy).unwrap().to_string(), wanted.image);
        assert_eq!(toy.image.registers.rip, wanted.state.0[0]);
    }
    toy.resume().unwrap();
    toy.scribble(5, 1234);
    let next = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    assert_eq!(next.changed_pages, 1);
    let report = recorder.undo(&mut toy, &RollbackRequest::default()).unwrap();
    assert_eq!(report.operation.status, OperationStatus::Done);
}

#[test]
fn an_older_store_is_not_changed_by_readers() {
    let dir = quick_dir();
    unpack(1, dir.path());
    let path = dir.path().join("catalogue.sqlite");
    let before = fs::read(&path).unwrap();
    let Err(error) = Store::open(dir.path(), Access::ReadOnly) else { panic!("it opened") };
    assert!(matches!(error, Error::OlderStore { found: 1, .. }), "{error}");
    assert!(error.to_string().contains("Open it once for writing"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_catalogue_cut_short_is_named_and_not_made_again() {
    let dir = quick_dir();
    unpack(1, dir.path());
    let path = dir.path().join("catalogue.sqlite");
    let whole = fs::read(&path).unwrap();
    for length in [0, 60, 100, 4096, whole.len() / 2, whole.len() - 4096] {
        for access in [Access::Create, Access::ReadWrite, Access::ReadOnly] {
            fs::write(&path, &whole[..length]).unwrap();
            let found = Store::open(dir.path(), access).and_then(|store| {
                let report = store.verify(&mut |_| ())?;
                assert!(!report.damaged.is_empty(), "{length} bytes, {access:?}");
                Ok(())
            });
            let error = found.err().map(|error| error.to_string());
            assert!(error.as_ref().is_none_or(|e| !e.is_empty()), "{length} bytes, {access:?}: {error:?}");
            // No pack is removed because the catalogue lost it.
            assert!(dir.path().join("packs/000001.pack").exists(), "{length} bytes, {access:?}: {error:?}");
        }
    }
}
