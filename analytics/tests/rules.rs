//! Rules with evidence by themselves: panic, oops, reboot, a stopped clock, and facts that are missing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod synthetic;

use retrovisor_analytics::{Evaluation, Sample};
use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_snapshot::{CheckpointRecord, Verdict};
use synthetic::run::Run;

/// The kernel's facts with those that the rules read.
static KERNEL: Schema = Schema {
    table: "fact_kernel",
    columns: &[
        Column::new("boot", Kind::Text),
        Column::new("uptime_ns", Kind::Integer),
        Column::new("cpus", Kind::Integer),
        Column::new("state", Kind::Text),
        Column::new("panic_cpu", Kind::Integer),
        Column::new("oopses", Kind::Integer),
        Column::new("virtual_slide", Kind::Text),
        Column::new("physical_base", Kind::Text),
    ],
};
static LOG: Schema = Schema {
    table: "fact_log",
    columns: &[
        Column::new("sequence", Kind::Integer),
        Column::new("level", Kind::Integer),
        Column::new("facility", Kind::Integer),
        Column::new("text", Kind::Text),
    ],
};

struct Kernel {
    boot: &'static str,
    uptime_s: f64,
    state: &'static str,
    oopses: i64,
    slide: &'static str,
}

impl Kernel {
    fn table(&self) -> Table {
        #[expect(clippy::cast_possible_truncation, reason = "a few seconds")]
        let uptime_ns = (self.uptime_s * 1e9) as i64;
        let panic_cpu = if self.state == "panic" { Value::Integer(0) } else { Value::Null };
        let row = vec![
            if self.state == "running" { self.boot.into() } else { Value::Null },
            Value::Integer(uptime_ns),
            Value::Integer(1),
            self.state.into(),
            panic_cpu,
            Value::Integer(self.oopses),
            self.slide.into(),
            "0x0".into(),
        ];
        Table { schema: &KERNEL, rows: vec![row] }
    }
}

/// Lets the guest run, and has its facts evaluated after a change.
fn step(run: &mut Run, change: impl FnOnce(&mut CheckpointRecord, &mut Vec<Table>, Kernel)) -> Evaluation {
    run.guest.run(0.5);
    let mut record = run.records.take(&run.guest);
    let mut tables = run.guest.tables();
    let uptime_s = run.guest.uptime_s;
    let kernel = Kernel { boot: "first", uptime_s, state: "running", oopses: 0, slide: "0x1000" };
    change(&mut record, &mut tables, kernel);
    let sample = Sample::from_tables(&record, &tables);
    let parent = record.parent.and_then(|parent| run.samples.get(&parent));
    let evaluation = run.evaluator.evaluate(&sample, parent);
    run.samples.insert(record.id, sample);
    evaluation
}

fn replace(tables: &mut Vec<Table>, table: Table) {
    tables.retain(|other| other.schema.table != table.schema.table);
    tables.push(table);
}

fn healthy(run: &mut Run) -> Evaluation {
    step(run, |_, tables, kernel| replace(tables, kernel.table()))
}

fn learnt(seed: u64) -> Run {
    let mut run = Run::new(seed);
    while run.evaluator.is_learning() {
        healthy(&mut run);
    }
    run
}

#[test]
fn a_panic_is_bad_at_once_and_no_checkpoint_after_it_becomes_good() {
    let mut run = learnt(1);
    let mut settled = Vec::new();
    let mut first = None;
    for _ in 0..8 {
        let evaluation = step(&mut run, |_, tables, kernel| {
            replace(tables, Kernel { state: "panic", ..kernel }.table());
        });
        assert_eq!(evaluation.verdict, Verdict::Bad);
        assert!(evaluation.reasons.iter().any(|reason| reason.subject.starts_with("kernel_panic")));
        first = first.or(Some(evaluation.checkpoint));
        settled.extend(evaluation.settled);
    }
    assert!(settled.iter().all(|checkpoint| Some(*checkpoint) < first), "{settled:?}");
}

#[test]
fn an_oops_is_bad_by_its_count_or_by_the_kernels_log() {
    let mut run = learnt(2);
    let counted = step(&mut run, |_, tables, kernel| replace(tables, Kernel { oopses: 1, ..kernel }.table()));
    assert_eq!(counted.verdict, Verdict::Bad);
    let log = |facility| Table {
        schema: &LOG,
        rows: vec![vec![
            Value::Integer(9000),
            Value::Integer(1),
            Value::Integer(facility),
            "BUG: kernel NULL pointer dereference, address: 0".into(),
        ]],
    };
    let mut run = learnt(2);
    let logged = step(&mut run, |_, tables, kernel| {
        replace(tables, kernel.table());
        replace(tables, log(0));
    });
    assert_eq!(logged.verdict, Verdict::Bad, "{:?}", logged.reasons);
    let mut run = learnt(2);
    let by_a_process = step(&mut run, |_, tables, kernel| {
        replace(tables, kernel.table());
        replace(tables, log(1));
    });
    assert_ne!(by_a_process.verdict, Verdict::Bad, "{:?}", by_a_process.reasons);
}

#[test]
fn a_reboot_is_named_and_begins_a_new_baseline_and_the_old_one_returns_with_a_rollback() {
    let mut run = learnt(3);
    let before = healthy(&mut run).checkpoint;
    let baseline = run.evaluator.baseline_len();
    for _ in 0..5 {
        let evaluation = step(&mut run, |_, tables, kernel| {
            replace(tables, Kernel { slide: "0x2000", ..kernel }.table());
        });
        assert_eq!(evaluation.verdict, Verdict::Unknown, "{:?}", evaluation.reasons);
        assert!(evaluation.learning && run.evaluator.is_learning());
        let named = evaluation.reasons.iter().any(|reason| reason.text.contains("rebooted"));
        assert_eq!(named, run.records.at.is_some_and(|at| at.0 == before.0 + 1));
    }
    run.records.go_back_to(before);
    run.evaluator.rolled_back_to(before);
    let evaluation = healthy(&mut run);
    assert!(!evaluation.learning && run.evaluator.baseline_len() >= baseline);
}

/// A reboot as checkpoints meet it: the kernel goes down, the firmware runs, the kernel boots, and runs when its clock is
/// beyond where it was.
#[test]
fn nothing_between_two_boots_is_an_alarm_or_clean_and_the_new_one_is_learnt() {
    let mut run = learnt(6);
    let last = healthy(&mut run).checkpoint;
    let booting = |state, slide, uptime_s| {
        move |_: &mut CheckpointRecord, tables: &mut Vec<Table>, kernel: Kernel| {
            replace(tables, Kernel { uptime_s, state, slide, ..kernel }.table());
        }
    };
    let uptime_s = run.guest.uptime_s;
    let mut between = vec![step(&mut run, booting("restart", "0x1000", uptime_s))];
    for _ in 0..3 {
        between.push(step(&mut run, |_, tables, _| tables.clear()));
    }
    // The clock stands while the kernel begins.
    for state in ["booting", "scheduling", "freeing_initmem"] {
        between.push(step(&mut run, |record, tables, kernel| {
            record.taken_at_ms += 60_000;
            booting(state, "0x1000", 0.0)(record, tables, kernel);
        }));
    }
    for evaluation in &between {
        assert_eq!(evaluation.verdict, Verdict::Unknown, "{:?}", evaluation.reasons);
        assert!(evaluation.reasons.iter().any(|reason| reason.subject == "facts"), "{evaluation:?}");
    }
    let said = |evaluation: &Evaluation, text: &str| {
        evaluation.reasons.iter().any(|reason| reason.text.contains(text))
    };
    assert!(said(&between[0], "`restart`") && said(&between[5], "`scheduling`"));
    let reboots: Vec<_> = between.iter().map(|evaluation| said(evaluation, "rebooted")).collect();
    assert_eq!(reboots, [false, false, false, false, true, false, false]);
    for _ in 0..8 {
        let evaluation = healthy(&mut run);
        assert!(evaluation.learning && !said(&evaluation, "rebooted"), "{:?}", evaluation.reasons);
        assert_eq!(evaluation.settled, [], "after {last}");
    }
}

/// The first checkpoint after the firmware can have any clock, and a kernel without KASLR is where it was.
#[test]
fn a_boot_is_recognised_by_its_name_alone() {
    let mut run = learnt(7);
    healthy(&mut run);
    step(&mut run, |_, tables, _| tables.clear());
    let evaluation = step(&mut run, |_, tables, kernel| {
        replace(tables, Kernel { boot: "another", ..kernel }.table());
    });
    assert!(evaluation.learning && evaluation.reasons.iter().any(|reason| reason.subject == "reboot"));
}

#[test]
fn a_checkpoint_without_facts_never_becomes_good() {
    let mut run = learnt(4);
    let unread = step(&mut run, |_, tables, _| tables.clear());
    assert_eq!(unread.verdict, Verdict::Unknown);
    assert!(unread.reasons.iter().any(|reason| reason.subject == "facts"));
    for _ in 0..8 {
        let evaluation = healthy(&mut run);
        assert!(
            !evaluation.settled.iter().any(|settled| *settled <= unread.checkpoint),
            "{:?}",
            evaluation.settled
        );
    }
}

#[test]
fn a_clock_that_does_not_advance_is_suspect_while_memory_is_written() {
    let mut run = learnt(5);
    let at = run.guest.uptime_s;
    let stopped = |run: &mut Run, after_ms: i64| {
        step(run, |record, tables, kernel| {
            record.taken_at_ms += after_ms;
            replace(tables, Kernel { uptime_s: at, ..kernel }.table());
        })
    };
    stopped(&mut run, 0);
    let evaluation = stopped(&mut run, 30_000);
    assert_eq!(evaluation.verdict, Verdict::Suspect, "{:?}", evaluation.reasons);
    assert!(evaluation.reasons.iter().any(|reason| reason.text.contains("clock did not advance")));
}
