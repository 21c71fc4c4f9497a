//! Queries of the catalogue, and what else it records.

use std::time::Duration;

use retrovisor_guest::Gfn;
use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_snapshot::{
    ContentRef, Error, EventId, EventSeverity, NewIncident, OperationKind, RollbackRequest, Verdict,
    VerdictRecord,
};

use crate::toy::{Frame, Lab, Toy};

static TASKS: Schema = Schema {
    table: "fact_task",
    columns: &[Column::new("pid", Kind::Integer), Column::new("comm", Kind::Text)],
};
static TASKS_GROWN: Schema = Schema {
    table: "fact_task",
    columns: &[
        Column::new("pid", Kind::Integer),
        Column::new("comm", Kind::Text),
        Column::new("cpu_share", Kind::Real),
    ],
};

fn tasks(rows: &[(i64, &str)]) -> Table {
    let rows = rows.iter().map(|(pid, comm)| vec![Value::Integer(*pid), Value::from(*comm)]).collect();
    Table { schema: &TASKS, rows }
}

#[test]
fn facts_come_back_and_their_tables_grow() {
    let mut lab = Lab::new(4);
    let (first, second) = (lab.checkpoint(), lab.checkpoint());
    let catalogue = lab.store.catalogue();
    assert_eq!(catalogue.facts(first.id, "fact_task").unwrap().columns, Vec::<String>::new());
    catalogue.record_facts(first.id, &[tasks(&[(1, "init"), (2, "it's \"sh\"")])]).unwrap();
    catalogue.record_facts(first.id, &[tasks(&[(1, "init"), (3, "cat")])]).unwrap();
    let rows = catalogue.facts(first.id, "fact_task").unwrap();
    assert_eq!(rows.columns, ["pid", "comm"]);
    assert_eq!(rows.rows, [[Value::Integer(1), "init".into()], [Value::Integer(3), "cat".into()]]);

    let grown = vec![vec![Value::Integer(1), "init".into(), Value::Real(0.5)]];
    catalogue.record_facts(second.id, &[Table { schema: &TASKS_GROWN, rows: grown }]).unwrap();
    assert_eq!(catalogue.facts(first.id, "fact_task").unwrap().rows[0][2], Value::Null);
    // An older program with fewer columns continues writing.
    catalogue.record_facts(second.id, &[tasks(&[(9, "old")])]).unwrap();
    let sql = "SELECT machine, sequence, pid, comm, cpu_share FROM v_fact_task ORDER BY pid";
    let rows = catalogue.query(sql, &[], 10).unwrap().rows;
    assert_eq!(rows[2], ["toy".into(), Value::Integer(2), Value::Integer(9), "old".into(), Value::Null]);
    assert_eq!(catalogue.fact_tables().unwrap(), ["fact_task"]);
}

#[test]
fn facts_that_do_not_fit_are_refused() {
    static NAMES: [Schema; 4] = [
        Schema { table: "checkpoint", columns: TASKS.columns },
        Schema { table: "fact_x; DROP TABLE machine", columns: TASKS.columns },
        Schema { table: "fact_x", columns: &[Column::new("a\"b", Kind::Text)] },
        Schema { table: "fact_x", columns: &[Column::new("checkpoint", Kind::Text)] },
    ];
    let mut lab = Lab::new(4);
    let first = lab.checkpoint();
    let catalogue = lab.store.catalogue();
    for schema in &NAMES {
        let refused = catalogue.record_facts(first.id, &[Table { schema, rows: vec![] }]);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    for row in [vec![Value::Integer(1)], vec![Value::Integer(1), Value::Integer(2)]] {
        let refused = catalogue.record_facts(first.id, &[Table { schema: &TASKS, rows: vec![row] }]);
        assert!(matches!(refused, Err(Error::Invalid { what: "fact row", .. })), "{refused:?}");
    }
    let nowhere = retrovisor_snapshot::CheckpointId(99);
    assert!(matches!(catalogue.record_facts(nowhere, &[tasks(&[])]), Err(Error::NotFound { .. })));
}

#[test]
fn a_query_reads_and_nothing_else() {
    let mut lab = Lab::new(4);
    lab.checkpoint();
    lab.checkpoint();
    let catalogue = lab.store.catalogue();
    let two =
        catalogue.query("SELECT name FROM v_checkpoint WHERE sequence <= ?1", &[2_u32.into()], 1).unwrap();
    assert_eq!((two.columns, two.rows.len(), two.truncated), (vec!["name".to_owned()], 1, true));
    for sql in [
        "WITH a AS (SELECT 1 AS x) SELECT x FROM a",
        "EXPLAIN QUERY PLAN SELECT * FROM checkpoint",
        "PRAGMA table_info(checkpoint)",
        "SELECT hex(hash) FROM content",
    ] {
        catalogue.query(sql, &[], 100).unwrap();
    }
    for sql in [
        "DELETE FROM checkpoint",
        "UPDATE machine SET name = 'x'",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "DROP TABLE checkpoint",
        "ATTACH '/etc/passwd' AS x",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = 1",
        "VACUUM INTO '/tmp/x'",
        "BEGIN",
        "SELECT 1; SELECT 2",
        "SELECT 1; DELETE FROM checkpoint",
        "WITH a AS (SELECT 1) DELETE FROM checkpoint",
        "SELECT load_extension('x')",
        "",
    ] {
        let refused = catalogue.query(sql, &[], 100);
        assert!(matches!(refused, Err(Error::QueryRefused(_) | Error::QueryFailed(_))), "{sql}: {refused:?}");
    }
    assert!(matches!(catalogue.query("SELEC 1", &[], 1), Err(Error::QueryFailed(_))));
    let endless = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let slow = catalogue.query_within(endless, &[], 1, Duration::from_millis(50));
    assert!(matches!(slow, Err(Error::QueryTimeout { limit_ms: 50 })), "{slow:?}");
    assert_eq!(catalogue.checkpoints(lab.machine).unwrap().len(), 2);
}

#[test]
fn checkpoints_are_found_by_what_people_call_them() {
    let mut lab = Lab::new(4);
    let first = lab.label("clean boot");
    let second = lab.checkpoint();
    let third = lab.checkpoint();
    let store = lab.store.clone();
    let find = |spec: &str| store.catalogue().resolve(lab.machine, spec);
    assert_eq!(find("clean boot").unwrap().id, first.id);
    assert_eq!(find("-0").unwrap().id, third.id);
    assert_eq!(find("-2").unwrap().id, first.id);
    assert_eq!(find("@2").unwrap().id, second.id);
    assert_eq!(find("current").unwrap().id, third.id);
    assert_eq!(find(&second.name).unwrap().id, second.id);
    assert_eq!(find(&second.name[..8]).unwrap().id, second.id);
    for nothing in ["-3", "@9", "@x", "zzzzzzzzzzzz", "no-such", "", "-", "last-good"] {
        assert!(matches!(find(nothing), Err(Error::NotFound { .. })), "{nothing}");
    }
    let verdict =
        |verdict| VerdictRecord { verdict, score: 1.0, p_value: None, reasons: vec![], features: vec![] };
    store.catalogue().set_verdict(first.id, &verdict(Verdict::Good)).unwrap();
    store.catalogue().set_verdict(second.id, &verdict(Verdict::Good)).unwrap();
    store.catalogue().set_verdict(third.id, &verdict(Verdict::Bad)).unwrap();
    assert_eq!(find("last-good").unwrap().id, second.id);
    lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default()).unwrap();
    // Ancestors of the current one: the second is on the other timeline now.
    let find = |spec: &str| store.catalogue().resolve(lab.machine, spec);
    assert_eq!(find("last-good").unwrap().id, first.id);
    assert_eq!(find("latest").unwrap().kind, retrovisor_snapshot::CheckpointKind::BeforeRollback);
    assert!(matches!(find("-1"), Err(Error::NotFound { .. })));

    let machine = lab.machine;
    let find = |spec: &str| store.catalogue().resolve(machine, spec);
    let before = lab.checkpoint();
    lab.label("twice");
    let newer = lab.label("twice");
    assert_eq!(find("twice").unwrap().id, newer.id);
    lab.recorder.rollback(&mut lab.toy, before.id, &RollbackRequest::default()).unwrap();
    // Both are on the other timeline now.
    let Err(Error::Ambiguous { candidates, .. }) = find("twice") else { panic!() };
    assert_eq!(candidates.len(), 2);
    let again = lab.label("twice");
    assert_eq!(find("twice").unwrap().id, again.id);
    let prefixes = (0..40).map(|_| lab.checkpoint().name[..1].to_owned()).collect::<Vec<_>>();
    let crowded = prefixes.iter().find(|p| prefixes.iter().filter(|q| q == p).count() > 1).unwrap();
    assert!(matches!(store.catalogue().resolve(lab.machine, crowded), Err(Error::Ambiguous { .. })));
    for label in ["", "-1", "@2", "latest", "a\nb"] {
        let request =
            retrovisor_snapshot::CheckpointRequest { label: Some(label.into()), ..Default::default() };
        assert!(matches!(
            lab.recorder.checkpoint(&mut lab.toy, &request),
            Err(Error::Invalid { what: "label", .. })
        ));
    }
}

#[test]
fn the_history_of_a_page_is_plain_sql() {
    let mut lab = Lab::new(8);
    lab.toy.scribble(3, 1);
    lab.checkpoint();
    lab.checkpoint();
    lab.toy.set(3, Frame::Zero);
    let zeroed = lab.checkpoint();
    lab.toy.scribble(3, 1);
    let again = lab.checkpoint();
    let history = lab.store.catalogue().page_history(lab.machine, Gfn(3)).unwrap();
    assert_eq!(history.iter().map(|v| v.sequence).collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!((history[1].content, history[0].content), (ContentRef::Zero, history[2].content));
    assert_eq!((again.new_pages, again.changed_pages, zeroed.zero_pages), (0, 1, 1));
    let sql = "SELECT sequence, state, address FROM v_page_history WHERE machine = 'toy' AND gfn = 3 ORDER BY sequence";
    let rows = lab.store.catalogue().query(sql, &[], 10).unwrap().rows;
    assert_eq!(rows[1], [Value::Integer(3), "zero".into(), "0x0000000000003000".into()]);
    let changed = lab.store.changed(zeroed.id, again.id).unwrap();
    assert_eq!((changed.len(), changed[0].gfn, changed[0].before), (1, Gfn(3), ContentRef::Zero));
}

#[test]
fn verdicts_and_incidents_come_back() {
    let mut lab = Lab::new(4);
    let (good, bad) = (lab.checkpoint(), lab.label("oops"));
    let catalogue = lab.store.catalogue();
    assert_eq!(catalogue.verdict(bad.id).unwrap(), None);
    let verdict = VerdictRecord {
        verdict: Verdict::Bad,
        score: 9.5,
        p_value: Some(0.001),
        reasons: vec!["a syscall entry points elsewhere".into()],
        features: vec![("dirty_pages".into(), 12.0), ("rate".into(), 0.5)],
    };
    catalogue.set_verdict(bad.id, &verdict).unwrap();
    assert_eq!(catalogue.verdict(bad.id).unwrap(), Some(verdict.clone()));
    let infinite = VerdictRecord { features: vec![("x".into(), f64::NAN), ("y".into(), 1.0)], ..verdict };
    catalogue.set_verdict(bad.id, &infinite).unwrap();
    assert_eq!(catalogue.verdict(bad.id).unwrap().unwrap().features, [("y".to_owned(), 1.0)]);
    catalogue.change_verdict(good.id, Verdict::Good).unwrap();
    assert_eq!(catalogue.checkpoint(good.id).unwrap().verdict, Verdict::Good);
    assert!(Verdict::Good < Verdict::Suspect && Verdict::Suspect < Verdict::Bad);

    let new = NewIncident {
        first_bad: bad.id,
        last_good: Some(good.id),
        kind: "hook".into(),
        summary: "a syscall entry points elsewhere".into(),
        detail: serde_json::json!({ "table": "sys_call_table" }),
        action: None,
    };
    let incident = catalogue.add_incident(lab.machine, &new).unwrap();
    catalogue
        .update_incident(incident.id, &NewIncident { action: Some("rolled back".into()), ..new })
        .unwrap();
    let found = catalogue.incident(&incident.name[..9]).unwrap();
    assert_eq!((found.action.as_deref(), found.first_bad), (Some("rolled back"), bad.id));
    assert_eq!(catalogue.incidents(lab.machine).unwrap(), [found]);
    assert!(matches!(catalogue.incident("% OR 1"), Err(Error::NotFound { .. })));
    let operations = catalogue.operations(lab.machine).unwrap();
    assert_eq!((operations.len(), operations[0].kind), (1, OperationKind::Checkpoint));
    for view in ["v_checkpoint", "v_operation", "v_timeline", "v_feature", "v_incident", "v_page_history"] {
        catalogue.query(&format!("SELECT * FROM {view}"), &[], 5).unwrap();
    }
}

#[test]
fn events_are_numbered_and_read_from_any_of_them_on() {
    let lab = Lab::new(4);
    let catalogue = lab.store.catalogue();
    let other = catalogue.add_machine(&Toy::named("other", &lab.toy.identity.layout)).unwrap().id;
    let detail = serde_json::json!({ "device": "d0" });
    let first = catalogue.add_event(lab.machine, "io-error", EventSeverity::Error, &detail).unwrap();
    catalogue.add_event(other, "reset", EventSeverity::Info, &serde_json::Value::Null).unwrap();
    let second =
        catalogue.add_event(lab.machine, "reset", EventSeverity::Info, &serde_json::Value::Null).unwrap();
    let all = catalogue.events_since(lab.machine, EventId(0), 10).unwrap();
    assert_eq!(all.iter().map(|event| event.id).collect::<Vec<_>>(), [first, second]);
    assert_eq!(
        (all[0].kind.as_str(), all[0].severity, &all[0].detail),
        ("io-error", EventSeverity::Error, &detail)
    );
    assert_eq!(all[1].detail, serde_json::json!({}));
    assert_eq!(catalogue.events_since(lab.machine, first, 10).unwrap(), all[1..]);
    assert_eq!(catalogue.events_since(lab.machine, EventId(0), 1).unwrap(), all[..1]);
    let rows = catalogue.query("SELECT kind FROM v_event WHERE machine = 'other'", &[], 9).unwrap();
    assert_eq!(rows.rows, [[Value::from("reset")]]);
}

#[test]
fn a_doubtful_checkpoint_is_not_the_last_good_one() {
    let mut lab = Lab::new(4);
    let good = VerdictRecord {
        verdict: Verdict::Good,
        score: 0.0,
        p_value: None,
        reasons: vec![],
        features: vec![],
    };
    let records: Vec<_> = (0..4)
        .map(|round| {
            lab.toy.scribble(0, round);
            lab.checkpoint()
        })
        .collect();
    let catalogue = lab.store.catalogue();
    for record in &records {
        catalogue.set_verdict(record.id, &good).unwrap();
    }
    assert_eq!(catalogue.resolve(lab.machine, "last-good").unwrap().id, records[3].id);
    assert_eq!(catalogue.mark_doubtful(lab.machine, 3..=9).unwrap(), 2);
    assert_eq!(catalogue.mark_doubtful(lab.machine, 3..=3).unwrap(), 0);
    assert_eq!(catalogue.resolve(lab.machine, "last-good").unwrap().id, records[1].id);
    let doubtful: Vec<_> = catalogue.checkpoints(lab.machine).unwrap().iter().map(|c| c.doubtful).collect();
    assert_eq!(doubtful, [false, false, true, true]);
}

#[test]
fn the_first_checkpoint_of_a_boot_is_found_by_its_facts() {
    static KERNEL: Schema = Schema {
        table: "fact_kernel",
        columns: &[
            Column::new("banner", Kind::Text),
            Column::new("virtual_slide", Kind::Integer),
            Column::new("physical_base", Kind::Integer),
        ],
    };
    static MEMORY: Schema =
        Schema { table: "fact_memory", columns: &[Column::new("kernel_text_pages", Kind::Integer)] };
    let mut lab = Lab::new(4);
    assert_eq!(lab.store.catalogue().first_checkpoint_of_boot(lab.machine).unwrap(), None);
    let mut ids = Vec::new();
    // Slides of two boots; of the second one, the code could not be read at first.
    for (slide, text_pages) in [(1, 9), (1, 9), (2, 0), (2, 9), (2, 9)] {
        lab.toy.scribble(0, ids.len() as u64);
        let record = lab.checkpoint();
        ids.push(record.id);
        let tables = [
            Table {
                schema: &KERNEL,
                rows: vec![vec!["Linux".into(), Value::Integer(slide), Value::Integer(7)]],
            },
            Table { schema: &MEMORY, rows: vec![vec![Value::Integer(text_pages)]] },
        ];
        lab.store.catalogue().record_facts(record.id, &tables).unwrap();
    }
    assert_eq!(lab.store.catalogue().first_checkpoint_of_boot(lab.machine).unwrap(), Some(ids[3]));
}
