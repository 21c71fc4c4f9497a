//! What differs between two checkpoints: facts, then structures, variables, files and processes; pages last.

use std::collections::HashMap;
use std::sync::Arc;

use retrovisor_guest::{Gfn, fact::Value};
use retrovisor_introspect::{
    ChangedFrame, Difference, GroupChange, Introspector, ObjectChange, OwnerReader, compare,
};
use retrovisor_manager::{ManagerError, kernel_library};
use retrovisor_proto::v1::Table;
use retrovisor_snapshot::{CheckpointRecord, Store};

use super::convert;

/// Most rows of a fact table that are compared.
const ROWS_MAX: usize = 20_000;
/// Most changed pages whose contents are examined, so that a huge difference ends in time.
const PAGES_MAX: usize = 200_000;
/// Most checkpoints between the two that are examined to find when each page changed.
const STEPS_MAX: usize = 64;

/// Title and SQL over both checkpoints.
type Query = (&'static str, &'static str);

/// Shown before the structures.
const EVENTS: [Query; 3] = [
    (
        "Invariants violated since",
        "SELECT kind, object, symbol, expected, found FROM fact_integrity WHERE checkpoint = ?2 \
             EXCEPT SELECT kind, object, symbol, expected, found FROM fact_integrity WHERE checkpoint = ?1",
    ),
    (
        "Tasks",
        "SELECT 'new' AS change, pid, ppid, comm, (utime_ns + stime_ns) / 1000000 AS cpu_ms, rss_pages \
             FROM fact_task WHERE checkpoint = ?2 AND (pid, start_time_ns) NOT IN \
             (SELECT pid, start_time_ns FROM fact_task WHERE checkpoint = ?1) \
             UNION ALL SELECT 'ended', pid, ppid, comm, (utime_ns + stime_ns) / 1000000, rss_pages \
             FROM fact_task WHERE checkpoint = ?1 AND (pid, start_time_ns) NOT IN \
             (SELECT pid, start_time_ns FROM fact_task WHERE checkpoint = ?2)",
    ),
    (
        "Modules",
        "SELECT 'new' AS change, name, size_bytes FROM fact_module WHERE checkpoint = ?2 AND name NOT IN \
             (SELECT name FROM fact_module WHERE checkpoint = ?1) \
             UNION ALL SELECT 'gone', name, size_bytes FROM fact_module WHERE checkpoint = ?1 AND name NOT IN \
             (SELECT name FROM fact_module WHERE checkpoint = ?2)",
    ),
];

/// Shown after them.
const QUANTITIES: [Query; 2] = [
    (
        "CPU time and memory of tasks",
        "WITH a AS MATERIALIZED (SELECT * FROM fact_task WHERE checkpoint = ?1), \
             b AS MATERIALIZED (SELECT * FROM fact_task WHERE checkpoint = ?2) \
             SELECT b.pid, b.comm, (b.utime_ns + b.stime_ns - a.utime_ns - a.stime_ns) / 1000000 AS cpu_ms, \
             b.rss_pages - a.rss_pages AS rss_pages FROM a JOIN b USING (pid, start_time_ns) \
             WHERE cpu_ms <> 0 OR b.rss_pages <> a.rss_pages ORDER BY cpu_ms DESC LIMIT 20",
    ),
    (
        "Counters that moved most",
        "WITH a AS MATERIALIZED (SELECT * FROM fact_counter WHERE checkpoint = ?1), \
             b AS MATERIALIZED (SELECT * FROM fact_counter WHERE checkpoint = ?2) \
             SELECT b.name, a.value AS before, b.value AS after, b.value - a.value AS change \
             FROM a JOIN b USING (name) WHERE a.value <> b.value ORDER BY abs(b.value - a.value) * 1.0 / (abs(a.value) + 1) DESC LIMIT 15",
    ),
];

/// What differs between two checkpoints, the most significant first, and the number of frames that differ.
pub(super) fn differences(
    store: &Arc<Store>,
    from: &CheckpointRecord,
    to: &CheckpointRecord,
) -> Result<(Vec<Table>, u64), ManagerError> {
    let mut tables = Vec::new();
    run(store, from, to, &EVENTS, &mut tables)?;
    let changed = store.changed(from.id, to.id)?;
    let pages = changed.len() as u64;
    let frames = frames(store, from, to, changed.iter().map(|change| change.gfn).take(PAGES_MAX))?;
    let owners = owners(store, from, to, &frames)?;
    if let Some(difference) = &owners {
        structures(difference, &mut tables);
    }
    run(store, from, to, &QUANTITIES, &mut tables)?;
    if let Some(difference) = &owners {
        let rows = difference.owners.iter();
        let rows = rows.map(|group| {
            vec![sequence(group.since), Value::from(group.owner.as_str()), Value::from(group.pages)]
        });
        push("Whose pages changed", &["since", "owner", "pages"], &rows.collect::<Vec<_>>(), &mut tables);
    }
    if changed.len() > PAGES_MAX {
        let note = format!("only the first {PAGES_MAX} of {pages} pages were examined");
        push("Note", &["note"], &[vec![Value::from(note)]], &mut tables);
    }
    Ok((tables, pages))
}

fn run(
    store: &Store,
    from: &CheckpointRecord,
    to: &CheckpointRecord,
    queries: &[Query],
    tables: &mut Vec<Table>,
) -> Result<(), ManagerError> {
    let both = [Value::Integer(from.id.0), Value::Integer(to.id.0)];
    for (title, sql) in queries {
        let rows = store.catalogue().query(sql, &both, ROWS_MAX)?;
        if !rows.rows.is_empty() {
            tables.push(convert::table(title, &rows.columns, &rows.rows, rows.truncated));
        }
    }
    Ok(())
}

/// Each frame with the sequence number of the checkpoint at which it first differed from the one before, if one of the
/// two is an ancestor of the other and not too many are between them.
fn frames(
    store: &Store,
    from: &CheckpointRecord,
    to: &CheckpointRecord,
    changed: impl Iterator<Item = Gfn>,
) -> Result<Vec<ChangedFrame>, ManagerError> {
    let mut line = store.catalogue().ancestry_within(to.id, STEPS_MAX + 1)?;
    line.reverse();
    let mut first: HashMap<Gfn, u64> = HashMap::new();
    if let Some(start) = line.iter().position(|checkpoint| checkpoint.id == from.id) {
        for step in line[start..].windows(2) {
            let [before, after] = step else { continue };
            for change in store.changed(before.id, after.id)? {
                first.entry(change.gfn).or_insert(after.sequence);
            }
        }
    }
    let since = |gfn: Gfn| first.get(&gfn).copied().unwrap_or(to.sequence);
    Ok(changed.map(|gfn| ChangedFrame { gfn, since: since(gfn) }).collect())
}

/// The owners of the frames, and what changed in them. `None` when the later one cannot be read.
fn owners(
    store: &Arc<Store>,
    from: &CheckpointRecord,
    to: &CheckpointRecord,
    frames: &[ChangedFrame],
) -> Result<Option<Difference>, ManagerError> {
    let (before, after) = (store.view(from.id)?, store.view(to.id)?);
    let mut introspector = Introspector::with_library(kernel_library(store));
    let first = introspector.observe(&before, &store.registers(from.id)?);
    let earlier = introspector.kernel();
    let second = introspector.observe(&after, &store.registers(to.id)?);
    let Some(kernel) = introspector.kernel().filter(|_| second.linux.is_some()) else { return Ok(None) };
    let mut reader = OwnerReader::new();
    // Structures of two boots cannot be compared: then only the later one names the frames.
    let same = first.linux.is_some() && earlier.is_some_and(|earlier| Arc::ptr_eq(&earlier, &kernel));
    let old = same.then(|| reader.read(&kernel, &before, &first));
    let mut new = reader.read(&kernel, &after, &second);
    new.trace_allocations(&after);
    Ok(Some(match &old {
        Some(old) => compare(&kernel, (&before, old), (&after, &new), frames),
        None => compare(&kernel, (&after, &new), (&after, &new), frames),
    }))
}

fn structures(difference: &Difference, tables: &mut Vec<Table>) {
    let objects = rows(&difference.objects, difference.objects_left_out);
    push("Structures", &["since", "structure", "which", "field", "before", "after"], &objects, tables);
    let groups = |groups: &[GroupChange], place: &dyn Fn(u64, u64) -> String| -> Vec<Vec<Value>> {
        let row = |group: &GroupChange| {
            let place = group.range.map(|(first, last)| place(first, last));
            let change = if group.new { "new" } else { "changed" };
            vec![
                sequence(group.since),
                Value::from(change),
                Value::from(group.owner.as_str()),
                Value::from(group.pages),
                Value::from(place),
            ]
        };
        groups.iter().map(row).collect()
    };
    let pages = |first, last| if first == last { format!("{first}") } else { format!("{first} to {last}") };
    let files = groups(&difference.files, &pages);
    push("Files in memory", &["since", "change", "file", "pages", "which"], &files, tables);
    let addresses = |first, last| {
        if first == last { format!("{first:#x}") } else { format!("{first:#x} to {last:#x}") }
    };
    let processes = groups(&difference.processes, &addresses);
    push("Memory of processes", &["since", "change", "process", "pages", "where"], &processes, tables);
    let variables = rows(&difference.variables, difference.variables_left_out);
    push(
        "Kernel variables",
        &["since", "structure", "which", "field", "before", "after"],
        &variables,
        tables,
    );
}

/// One row a field.
fn rows(objects: &[ObjectChange], left_out: u64) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    // Several of one kind of which nothing more is known share a row.
    let alike = |one: &ObjectChange, other: &ObjectChange| {
        one.fields.is_empty()
            && other.fields.is_empty()
            && (one.since, &one.structure, &one.object) == (other.since, &other.structure, &other.object)
    };
    for objects in objects.chunk_by(alike) {
        let Some(object) = objects.first() else { continue };
        let mut row = |field: &str, before: &str, after: &str| {
            let names = [object.structure.as_str(), object.object.as_str(), field, before, after];
            let mut cells = vec![sequence(object.since)];
            cells.extend(names.map(|name| if name.is_empty() { Value::Null } else { Value::from(name) }));
            rows.push(cells);
        };
        if object.fields.is_empty() {
            let many = if objects.len() > 1 { format!("{} of them", objects.len()) } else { String::new() };
            row(&many, "", "");
        }
        for field in &object.fields {
            row(&field.field, &field.before, &field.after);
        }
        if object.fields_left_out > 0 {
            row(&format!("{} more", object.fields_left_out), "", "");
        }
    }
    if left_out > 0 {
        let mut cells = vec![Value::Null; 6];
        cells[1] = Value::from(format!("{left_out} others"));
        rows.push(cells);
    }
    rows
}

fn sequence(number: u64) -> Value {
    Value::from(format!("#{number}"))
}

fn push(title: &str, columns: &[&str], rows: &[Vec<Value>], tables: &mut Vec<Table>) {
    if !rows.is_empty() {
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        tables.push(convert::table(title, &columns, rows, false));
    }
}
