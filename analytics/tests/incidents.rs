//! A whole story in a real store: learn, go wrong, notice, explain, go back, go wrong again, report, ask.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod synthetic;

use retrovisor_analytics::{CauseKind, Config, Evaluator, QUERIES, explain, report};
use retrovisor_guest::fact::Value;
use retrovisor_snapshot::{CheckpointId, Verdict};
use synthetic::stored::StoredRun;
use synthetic::{Fault, Guest};

/// Steps until a checkpoint is bad; its id, and how many it took.
fn until_bad(run: &mut StoredRun) -> (CheckpointId, usize) {
    for delay in 1..=6 {
        let evaluation = run.step();
        if evaluation.verdict == Verdict::Bad {
            return (evaluation.checkpoint, delay);
        }
    }
    panic!("not noticed: {:?}", run.evaluations.last());
}

/// Both faults of the demonstration, one after the other, with a rollback after each.
fn story(run: &mut StoredRun) -> [(CheckpointId, CheckpointId); 2] {
    run.learn();
    for _ in 0..6 {
        run.step();
    }
    let before_hook = run.records.last().unwrap().id;
    run.guest.violation = true;
    let (hooked, delay) = until_bad(run);
    assert_eq!(delay, 1, "a broken invariant is bad at once");
    let target = explain(run.catalogue(), hooked).unwrap().last_good.unwrap();
    run.roll_back(target);
    for _ in 0..8 {
        run.step();
    }
    let before_runaway = run.records.last().unwrap().id;
    run.guest.inject(Fault::RUNAWAY, "runaway");
    let (ran_away, delay) = until_bad(run);
    assert!(delay <= 4, "{delay}");
    run.roll_back(explain(run.catalogue(), ran_away).unwrap().last_good.unwrap());
    for _ in 0..6 {
        run.step();
    }
    [(before_hook, hooked), (before_runaway, ran_away)]
}

#[test]
fn each_fault_is_dated_and_blamed_rightly() {
    for seed in 0..6 {
        let mut run = StoredRun::new(seed);
        let [(before_hook, hooked), (before_runaway, ran_away)] = story(&mut run);

        let hook = explain(run.catalogue(), hooked).unwrap();
        assert_eq!(hook.onset, hooked);
        let cause = hook.top_cause().unwrap();
        assert_eq!((cause.kind, cause.object.as_str(), cause.rank), (CauseKind::Invariant, "getppid", 1));
        assert!(hook.is_certain());
        let good = hook.last_good.unwrap();
        assert!(good <= before_hook && run.catalogue().checkpoint(good).unwrap().verdict == Verdict::Good);

        let runaway = explain(run.catalogue(), ran_away).unwrap();
        let onset = run.catalogue().checkpoint(runaway.onset).unwrap();
        assert_eq!(onset.parent, Some(before_runaway), "seed {seed}: {:#?}", runaway.evidence);
        let cause = runaway.top_cause().unwrap();
        assert_eq!(
            (cause.kind, cause.object.as_str()),
            (CauseKind::Task, "runaway"),
            "{:#?}",
            runaway.causes
        );
        assert!(runaway.chance_level < 0.05 && runaway.candidates > 20);
        let good = run.catalogue().checkpoint(runaway.last_good.unwrap()).unwrap();
        assert!(good.id <= before_runaway && good.verdict == Verdict::Good);

        let false_alarms = run.evaluations.iter().filter(|j| j.verdict == Verdict::Bad).count();
        assert_eq!(false_alarms, 2, "seed {seed}: only the two faults are bad");
    }
}

#[test]
fn the_database_alone_leads_to_the_same_verdicts() {
    let mut run = StoredRun::new(3);
    story(&mut run);
    let mut again = Evaluator::new(Config::default());
    for (record, evaluation) in run.records.iter().zip(&run.evaluations) {
        let sample = retrovisor_analytics::Sample::load(run.catalogue(), record.id).unwrap();
        let parent =
            record.parent.and_then(|parent| retrovisor_analytics::Sample::load(run.catalogue(), parent).ok());
        assert_eq!(again.evaluate(&sample, parent.as_ref()), *evaluation);
    }
    // An evaluator that was loaded goes on as the one that was there all the time.
    let mut loaded = Evaluator::load(run.catalogue(), run.machine, Config::default()).unwrap();
    assert_eq!(loaded.baseline_len(), run.evaluator.baseline_len());
    let newest = run.records.last().unwrap().id;
    let parent = retrovisor_analytics::Sample::load(run.catalogue(), newest).unwrap();
    let online = run.step();
    let sample = retrovisor_analytics::Sample::load(run.catalogue(), online.checkpoint).unwrap();
    assert_eq!(loaded.evaluate(&sample, Some(&parent)), online);
}

#[test]
fn every_query_answers_and_names_the_culprit() {
    let mut run = StoredRun::new(4);
    let [(_, hooked), (_, ran_away)] = story(&mut run);
    let good = explain(run.catalogue(), ran_away).unwrap().last_good.unwrap();
    let (good, bad) = (run.name(good), run.name(ran_away));
    for query in QUERIES {
        let values: Vec<Value> = query
            .parameters
            .iter()
            .map(|parameter| match *parameter {
                "name of the machine" => "guest".into(),
                "name of a bad checkpoint" => bad.as_str().into(),
                "name of the last good checkpoint" => good.as_str().into(),
                "the executable's path, the port, …" => "/bin/sh".into(),
                other => panic!("unknown parameter {other}"),
            })
            .collect();
        // The synthetic guest has neither a table of system calls nor executables nor sockets.
        if matches!(query.name, "moved-syscalls" | "first-seen-executables" | "first-seen-listeners") {
            continue;
        }
        let rows =
            run.catalogue().query(query.sql, &values, 100).unwrap_or_else(|e| panic!("{}: {e}", query.name));
        let first = |column: &str| {
            let at = rows.columns.iter().position(|name| name == column).unwrap();
            rows.rows.first().unwrap_or_else(|| panic!("{}: no row", query.name))[at].clone()
        };
        match query.name {
            "cpu-since" | "new-tasks" | "memory-growth" => {
                assert_eq!(first("comm"), Value::from("runaway"), "{}: {rows:?}", query.name);
            }
            "broken-invariants" => assert_eq!(first("first_checkpoint"), Value::from(run.name(hooked))),
            "features-out-of-range" | "counters-out-of-range" => assert!(rows.rows.len() > 3),
            "verdicts" => assert_eq!(rows.rows.len(), 3, "three timelines"),
            _ => {}
        }
    }
}

#[test]
fn the_report_tells_the_story_and_stands_alone() {
    let mut run = StoredRun::new(5);
    let [(_, hooked), (_, ran_away)] = story(&mut run);
    let report = report(run.catalogue(), run.machine).unwrap();
    assert_eq!(report.incidents.len(), 2);
    assert_eq!(report.operations.len(), 2);
    let html = report.to_html();
    for name in [hooked, ran_away].map(|id| run.name(id)) {
        assert!(html.contains(&name));
    }
    assert!(html.contains("runaway") && html.contains("getppid"));
    for foreign in
        ["<script", "http://", "https://", "url(", "@import", "<link", "<img", "<iframe", " onload"]
    {
        assert!(!html.contains(foreign), "{foreign}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["incidents"].as_array().unwrap().len(), 2);
    if let Some(dir) = option_env!("CARGO_TARGET_TMPDIR") {
        std::fs::write(std::path::Path::new(dir).join("report.html"), html).unwrap();
    }
}

#[test]
fn a_guest_cannot_write_into_the_report() {
    let hostile = "</code><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{202e}\u{1b}[31m";
    let mut run = StoredRun::new(7);
    run.learn();
    for _ in 0..4 {
        run.step();
    }
    run.guest.inject(Fault::RUNAWAY, hostile);
    until_bad(&mut run);
    run.guest.violation = true;
    run.step();
    let html = report(run.catalogue(), run.machine).unwrap().to_html();
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "the name is shown");
    for raw in ["<script", "<img", "\u{202e}", "\u{1b}", "'><"] {
        assert!(!html.contains(raw), "{raw:?}");
    }
}

#[test]
fn an_empty_machine_and_one_without_facts_have_a_report() {
    let run = StoredRun::new(1);
    let html = report(run.catalogue(), run.machine).unwrap().to_html();
    assert!(html.contains("no checkpoint yet") && html.contains("still being learnt"));
    assert!(explain(run.catalogue(), CheckpointId(99)).is_err());
    let mut run = StoredRun::new(1);
    run.step();
    let only = run.records[0].id;
    let explanation = explain(run.catalogue(), only).unwrap();
    assert_eq!((explanation.onset, explanation.last_good), (only, None));
    let _ = Guest::new(0);
}
