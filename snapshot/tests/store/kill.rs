//! kill -9 at any moment: the store can be opened and verified, and returns every committed checkpoint bit by bit.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use retrovisor_guest::{Machine, MemoryLayout, PAGE_SIZE};
use retrovisor_snapshot::{
    Access, CheckpointKind, CheckpointRequest, CurrentPolicy, OperationStatus, Recorder, RollbackRequest,
    Store, image_hash,
};

use crate::toy::{Toy, open};

const DIR: &str = "RETROVISOR_TEST_KILL_DIR";
const SEED: &str = "RETROVISOR_TEST_KILL_SEED";
const ROUNDS: u64 = 40;

fn layout() -> MemoryLayout {
    MemoryLayout::flat(300 * PAGE_SIZE as u64).unwrap()
}

/// Not a test of its own: the process that the test below starts and kills. Reports each committed checkpoint, with its
/// image's hash as computed from the machine's memory.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let mut seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let store = open(&dir);
    let mut toy = Toy::new(&layout());
    let machine = match store.catalogue().machines().unwrap().first() {
        Some(known) => known.id,
        None => store.catalogue().add_machine(&toy.identity).unwrap().id,
    };
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let request = RollbackRequest::default();
    if let Some(position) = recorder.position() {
        // The process before was killed: the machine is restored first.
        recorder.restore(&mut toy, position.checkpoint, &request).unwrap();
        toy.resume().unwrap();
    }
    let mut out = std::io::stdout();
    let mut report_line = |id: i64, hash: blake3::Hash| {
        writeln!(out, "COMMITTED {id} {hash}").unwrap();
        out.flush().unwrap();
    };
    loop {
        for _ in 0..next(40) {
            let (page, content) = (next(300), next(100_000));
            toy.scribble(usize::try_from(page).unwrap(), content);
        }
        let image = image_hash(&toy).unwrap();
        let all = store.catalogue().checkpoints(machine).unwrap();
        if all.is_empty() || next(4) > 0 {
            // The label has the expected contents of the checkpoint, even if this process is killed before it reports
            // it.
            let request =
                CheckpointRequest { label: Some(image.to_string()), kind: CheckpointKind::Automatic };
            let report = recorder.checkpoint(&mut toy, &request).unwrap();
            report_line(report.record.id.0, image);
        } else {
            let target = &all[usize::try_from(next(all.len() as u64)).unwrap()];
            let staged = RollbackRequest { current: CurrentPolicy::Staged, ..RollbackRequest::default() };
            let done = match next(4) {
                0 => recorder.undo(&mut toy, &request),
                1 => recorder.rollback(&mut toy, target.id, &staged),
                _ => recorder.rollback(&mut toy, target.id, &request),
            };
            if let Ok(report) = done {
                report_line(report.current.unwrap().id.0, image);
            }
        }
    }
}

#[test]
fn killed_at_any_moment_the_store_keeps_what_it_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = rand::rng();
    let mut reported: Vec<(i64, String)> = Vec::new();
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--nocapture"])
            .env(DIR, dir.path())
            .env(SEED, (round + 1).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            let reported = lines.filter_map(|line| {
                let (_, rest) = line.split_once("COMMITTED ")?;
                let (id, hash) = rest.split_once(' ')?;
                // A line cut off by the kill is ignored.
                (hash.len() == 64).then(|| Some((id.parse().ok()?, hash.to_owned())))?
            });
            reported.collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_micros(rng.random_range(2_000..150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        reported.extend(reader.join().unwrap());

        // A process killed before it made the store leaves none.
        if reported.is_empty() && !dir.path().join("catalogue.sqlite").exists() {
            continue;
        }
        let store = Store::open(dir.path(), Access::Create).unwrap();
        let report = store.verify(&mut |_| ()).unwrap();
        assert_eq!(report.damaged, [], "round {round}");
        let Some(machine) = store.catalogue().machines().unwrap().first().map(|machine| machine.id) else {
            assert!(reported.is_empty());
            continue;
        };
        let there = store.catalogue().checkpoints(machine).unwrap();
        for (id, _) in &reported {
            assert!(
                there.iter().any(|record| record.id.0 == *id),
                "checkpoint {id} was reported and does not exist"
            );
        }
        // Those of this round, and a few old ones.
        for record in there.iter().rev().take(30).chain(there.iter().step_by(37)) {
            let image = store.image_hash(record.id).unwrap().to_string();
            if let Some(label) = &record.label {
                assert_eq!(*label, image, "round {round}, checkpoint {}", record.sequence);
            }
            if let Some((_, hash)) = reported.iter().find(|(id, _)| *id == record.id.0) {
                assert_eq!(*hash, image);
            }
        }
        if let Some(operation) = store.catalogue().interrupted(machine).unwrap() {
            assert_eq!(operation.status, OperationStatus::Failed);
            interrupted += 1;
        }
    }
    eprintln!("{ROUNDS} kills, {} checkpoints reported, {interrupted} rollbacks interrupted", reported.len());
    assert!(reported.len() > 20, "the children hardly got to work: {} checkpoints", reported.len());
}
