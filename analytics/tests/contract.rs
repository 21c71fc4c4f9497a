//! What analytics expects of introspection: counters by name, tables and columns that queries read.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::sync::Arc;

use retrovisor_analytics::{COUNTERS, QUERIES, Sample, named_query};
use retrovisor_guest::fact::Value;
use retrovisor_guest::{Machine as _, MemoryLayout};
use retrovisor_introspect::fact::{KernelFact, LogLine, Socket, Syscall, SyscallRoute, Task};
use retrovisor_introspect::{Linux, Observation, computed_counters, questions};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{Access, CheckpointRequest, MachineId, Recorder, Store};

/// The names of /proc/vmstat, of kernel 6.18.
const VMSTAT: &str = include_str!("vmstat_names.txt");

#[test]
fn every_feature_that_counts_has_a_counter_that_guests_have() {
    let known: BTreeSet<&str> = VMSTAT.lines().chain(computed_counters()).collect();
    for source in COUNTERS {
        let found = source.counters.iter().any(|counter| known.contains(counter));
        assert!(found, "{} is computed from {:?}, which no guest has", source.feature, source.counters);
    }
}

/// A store with checkpoints of a machine without a guest, to which facts are given by hand.
struct History {
    store: Arc<Store>,
    recorder: Recorder,
    memory: MemoryMachine,
    machine: MachineId,
    _dir: tempfile::TempDir,
}

impl History {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
        let memory = MemoryMachine::new("guest", MemoryLayout::flat(16 * 4096).unwrap()).unwrap();
        let machine = store.catalogue().add_machine(memory.identity()).unwrap().id;
        let recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
        Self { store, recorder, memory, machine, _dir: dir }
    }

    /// Takes a checkpoint with these facts; its name.
    fn add(&mut self, linux: Linux) -> String {
        let record =
            self.recorder.checkpoint(&mut self.memory, &CheckpointRequest::default()).unwrap().record;
        let observation = Observation { linux: Some(linux), ..Observation::default() };
        self.store.catalogue().record_facts(record.id, &observation.tables()).unwrap();
        record.name
    }

    /// The values of a column of a named query's answer.
    fn ask(&self, query: &str, values: &[&str], column: &str) -> Vec<Value> {
        let values: Vec<Value> = values.iter().map(|value| Value::from(*value)).collect();
        let rows = self.store.catalogue().query(named_query(query).unwrap().sql, &values, 1000).unwrap();
        let at = rows.columns.iter().position(|name| name == column).unwrap();
        rows.rows.into_iter().map(|mut row| row.swap_remove(at)).collect()
    }
}

fn call(number: u32, target: u64) -> Syscall {
    Syscall {
        via: SyscallRoute::Table,
        number,
        target,
        symbol: Some(format!("f{target}")),
        in_text: true,
        expected: None,
    }
}

fn line(sequence: u64) -> LogLine {
    LogLine { sequence, time_ns: sequence * 1000, level: 6, facility: 0, text: format!("line {sequence}") }
}

#[test]
fn every_question_of_inspect_is_answered_from_the_tables_of_its_facts() {
    let mut history = History::new();
    history.add(Linux { tasks: vec![Task::default()], ..Linux::default() });
    let id = history.store.catalogue().checkpoints(history.machine).unwrap()[0].id;
    for question in questions() {
        // The daemon adds a table about the reading itself.
        for select in question.selects.iter().filter(|select| select.table != "fact_reading") {
            let answer = history.store.catalogue().query(select.sql, &[Value::Integer(id.0)], 10);
            assert!(answer.is_ok(), "{}: {:?}", question.name, answer.err());
        }
    }
}

#[test]
fn every_named_query_has_the_columns_that_it_documents() {
    let mut history = History::new();
    let name = history.add(Linux::default());
    let names: BTreeSet<_> = QUERIES.iter().map(|query| query.name).collect();
    assert_eq!(names.len(), QUERIES.len());
    for query in QUERIES {
        let values = vec![Value::from(name.as_str()); query.parameters.len()];
        let answer = history.store.catalogue().query(query.sql, &values, 10);
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", query.name));
        let documented: Vec<_> = query.columns.iter().map(|column| column.name).collect();
        assert_eq!(answer.columns, documented, "{}", query.name);
        assert!(query.columns.iter().all(|column| !column.doc.is_empty()), "{}", query.name);
    }
}

#[test]
fn moved_syscalls_are_found_though_only_the_first_checkpoint_has_the_whole_table() {
    let mut history = History::new();
    let syscalls = (0..200).map(|number| call(number, 1000 + u64::from(number))).collect();
    let first = history.add(Linux { syscalls, ..Linux::default() });
    let good = history.add(Linux::default());
    let bad = history.add(Linux { syscalls: vec![call(110, 7)], ..Linux::default() });
    let later = history.add(Linux { syscalls: vec![call(110, 7), call(39, 8)], ..Linux::default() });
    let moved = |good: &str, bad: &str| history.ask("moved-syscalls", &[good, bad], "number");
    assert_eq!(moved(&first, &bad), [Value::Integer(110)]);
    assert_eq!(moved(&good, &bad), [Value::Integer(110)]);
    assert_eq!(moved(&bad, &later), [Value::Integer(39)]);
    assert_eq!(moved(&later, &good), [Value::Integer(39), Value::Integer(110)], "they lead back");
    assert_eq!(moved(&first, &good), []);
    assert_eq!(history.ask("moved-syscalls", &[&good, &bad], "led_to"), [Value::from("f1110")]);
}

#[test]
fn the_log_since_a_checkpoint_is_that_of_all_checkpoints_after_it() {
    let mut history = History::new();
    history.add(Linux { log: (0..10).map(line).collect(), ..Linux::default() });
    let good = history.add(Linux { log: vec![line(10)], ..Linux::default() });
    history.add(Linux { log: vec![line(11), line(12)], ..Linux::default() });
    // A daemon that was restarted reads again what an earlier checkpoint has.
    let bad = history.add(Linux { log: vec![line(9), line(12), line(13)], ..Linux::default() });
    let expected: Vec<Value> = (11..14).map(Value::Integer).collect();
    assert_eq!(history.ask("log-since", &[&good, &bad], "sequence"), expected);
    assert_eq!(history.ask("log-since", &[&bad, &good], "sequence"), []);
}

#[test]
fn an_executable_is_reported_with_the_checkpoint_that_had_it_first() {
    let mut history = History::new();
    let task = |pid: i32, path: &str, parent: &str| Task {
        pid,
        tgid: pid,
        executable: Some(path.to_owned()),
        parent_comm: parent.to_owned(),
        ..Task::default()
    };
    history.add(Linux { tasks: vec![task(1, "/sbin/init", "")], ..Linux::default() });
    let second = history.add(Linux {
        tasks: vec![task(1, "/sbin/init", ""), task(90, "/tmp/x", "sh"), Task::default()],
        ..Linux::default()
    });
    history.add(Linux { tasks: vec![task(91, "/tmp/x", "cron")], ..Linux::default() });
    let ask = |column| history.ask("first-seen-executables", &["guest"], column);
    assert_eq!(ask("executable"), [Value::from("/tmp/x"), Value::from("/sbin/init")]);
    assert_eq!(ask("first_checkpoint")[0], Value::from(second.as_str()));
    assert_eq!(ask("started_by")[0], Value::from("sh"));
    assert_eq!(ask("last_sequence"), [Value::Integer(3), Value::Integer(2)]);
    let seen = |column| history.ask("seen", &["guest", "/tmp/x"], column);
    assert_eq!(seen("first_checkpoint"), [Value::from(second.as_str())]);
    assert_eq!(
        (seen("first_sequence"), seen("last_sequence")),
        (vec![Value::Integer(2)], vec![Value::Integer(3)])
    );
    assert_eq!(history.ask("seen", &["guest", "/tmp"], "fact"), []);
}

#[test]
fn a_listener_is_reported_with_the_checkpoint_that_had_it_first() {
    let mut history = History::new();
    let socket = |port, state| Socket {
        protocol: "tcp".to_owned(),
        state,
        local_address: "0.0.0.0".to_owned(),
        local_port: Some(port),
        comm: Some(format!("of {port}")),
        ..Socket::default()
    };
    let ssh = || socket(22, "listen");
    history.add(Linux { sockets: vec![ssh(), socket(4444, "established")], ..Linux::default() });
    let second = history.add(Linux { sockets: vec![socket(4444, "listen"), ssh()], ..Linux::default() });
    history.add(Linux { sockets: vec![ssh()], ..Linux::default() });
    let ask = |column| history.ask("first-seen-listeners", &["guest"], column);
    assert_eq!(ask("local_port"), [Value::Integer(4444), Value::Integer(22)]);
    assert_eq!(ask("first_checkpoint")[0], Value::from(second.as_str()));
    assert_eq!(ask("comm")[0], Value::from("of 4444"));
    assert_eq!(ask("last_sequence"), [Value::Integer(2), Value::Integer(3)]);
    // Listening or not: the port as such was there before.
    assert_eq!(history.ask("seen", &["guest", "4444"], "first_sequence"), [Value::Integer(1)]);
}

#[test]
fn calls_that_lead_elsewhere_are_counted_as_a_feature() {
    let mut history = History::new();
    let kernel = |uptime_ns| KernelFact { uptime_ns: Some(uptime_ns), ..KernelFact::default() };
    let whole = (0..200).map(|number| call(number, 1000 + u64::from(number))).collect();
    history.add(Linux { kernel: kernel(1_000_000_000), syscalls: whole, ..Linux::default() });
    history.add(Linux { kernel: kernel(2_000_000_000), ..Linux::default() });
    history.add(Linux { kernel: kernel(3_000_000_000), syscalls: vec![call(110, 7)], ..Linux::default() });
    history.add(Linux { kernel: kernel(4_000_000_000), syscalls: vec![call(110, 7)], ..Linux::default() });
    history.add(Linux { kernel: kernel(5_000_000_000), ..Linux::default() });
    let catalogue = history.store.catalogue();
    let samples: Vec<Sample> = catalogue
        .checkpoints(history.machine)
        .unwrap()
        .iter()
        .map(|record| Sample::load(catalogue, record.id).unwrap())
        .collect();
    let mut evaluator = retrovisor_analytics::Evaluator::new(retrovisor_analytics::Config::default());
    let changes: Vec<f64> = samples
        .windows(2)
        .map(|pair| {
            let evaluation = evaluator.evaluate(&pair[1], Some(&pair[0]));
            let found = evaluation.features.iter().find(|(name, _)| name == "syscall_changes");
            found.unwrap_or_else(|| panic!("no syscall_changes in {:?}", evaluation.features)).1
        })
        .collect();
    let expected = [0.0, 1.0, 0.0, 1.0];
    assert!(
        changes.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9),
        "{changes:?}"
    );
}
