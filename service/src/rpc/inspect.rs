//! Facts of checkpoints as tables for people.

use std::collections::BTreeMap;
use std::sync::Arc;

use retrovisor_guest::fact::Value;
use retrovisor_introspect::{Introspector, OwnerMap};
use retrovisor_proto::v1::Table;
use retrovisor_snapshot::{CheckpointRecord, Store};

use super::convert;
use crate::care::CareError;

/// Rows of a fact table that are shown at the most.
const ROWS_MAX: usize = 20_000;
/// Owners of changed pages that are listed; the rest is summed up.
const OWNERS_MAX: usize = 40;
/// Changed pages whose owner is looked up, so that a huge difference ends in time.
const PAGES_EXPLAINED_MAX: usize = 200_000;

/// What to ask for each kind of fact: title and SQL over one checkpoint.
fn question(what: &str) -> Option<&'static [(&'static str, &'static str)]> {
    const KERNEL: (&str, &str) = ("Kernel", "SELECT * FROM fact_kernel WHERE checkpoint = ?1");
    const INTEGRITY: (&str, &str) = (
        "Violated invariants",
        "SELECT kind, object, symbol, detail, expected, found FROM fact_integrity WHERE checkpoint = ?1",
    );
    const TASKS: (&str, &str) = (
        "Tasks",
        "SELECT pid, ppid, comm, state, uid, utime_ns / 1000000 AS user_ms, stime_ns / 1000000 AS system_ms, \
         rss_pages, kernel_thread AS kthread, views FROM fact_task WHERE checkpoint = ?1 ORDER BY pid",
    );
    const BUSIEST: (&str, &str) = (
        "Busiest tasks",
        "SELECT pid, comm, state, (utime_ns + stime_ns) / 1000000 AS cpu_ms, rss_pages FROM fact_task \
         WHERE checkpoint = ?1 ORDER BY utime_ns + stime_ns DESC LIMIT 8",
    );
    Some(match what {
        "" | "summary" => &[KERNEL, INTEGRITY, BUSIEST],
        "tasks" => &[TASKS],
        "modules" => &[("Modules", "SELECT * FROM fact_module WHERE checkpoint = ?1 ORDER BY name")],
        "log" => &[(
            "Kernel log",
            "SELECT printf('%.6f', time_ns / 1e9) AS seconds, level, text FROM fact_log \
             WHERE checkpoint IN (WITH RECURSIVE line(id) AS (SELECT ?1 UNION ALL SELECT parent FROM checkpoint \
             JOIN line USING (id) WHERE parent IS NOT NULL) SELECT id FROM line) ORDER BY sequence",
        )],
        "counters" => {
            &[("Counters", "SELECT name, value FROM fact_counter WHERE checkpoint = ?1 ORDER BY name")]
        }
        "integrity" => &[INTEGRITY],
        "memory" => &[
            ("Memory", "SELECT * FROM fact_memory WHERE checkpoint = ?1"),
            ("Reading", "SELECT introspect_us, reason FROM fact_reading WHERE checkpoint = ?1"),
        ],
        _ => return None,
    })
}

/// The tables of one kind of fact.
pub(super) fn tables(store: &Store, record: &CheckpointRecord, what: &str) -> Result<Vec<Table>, CareError> {
    match what {
        "registers" => return Ok(vec![registers(store, record)?]),
        "syscalls" => return syscalls(store, record),
        _ => {}
    }
    let questions = question(what)
        .ok_or_else(|| CareError::Invalid(format!("there is no `{}` to inspect", what.escape_debug())))?;
    questions.iter().map(|(title, sql)| ask(store, record, title, sql)).collect()
}

fn ask(store: &Store, record: &CheckpointRecord, title: &str, sql: &str) -> Result<Table, CareError> {
    let rows = store.catalogue().query(sql, &[Value::Integer(record.id.0)], ROWS_MAX)?;
    let (columns, rows) = if rows.rows.len() == 1 && rows.columns.len() > 6 {
        // One wide row reads better as a list.
        let pairs = rows.columns.iter().zip(&rows.rows[0]).filter(|(name, _)| *name != "checkpoint");
        (
            vec!["property".to_owned(), "value".to_owned()],
            pairs.map(|(name, value)| vec![Value::from(name.as_str()), value.clone()]).collect(),
        )
    } else {
        (rows.columns, rows.rows)
    };
    Ok(convert::table(title, &columns, &rows))
}

/// The table of the first checkpoint of this boot, with what differs in this checkpoint laid over it.
fn syscalls(store: &Store, record: &CheckpointRecord) -> Result<Vec<Table>, CareError> {
    let columns = ["via", "number", "target", "symbol", "in_text", "expected"].map(str::to_owned).to_vec();
    let mut found: BTreeMap<(String, i64), Vec<Value>> = BTreeMap::new();
    let mut line = store.catalogue().ancestry(record.id)?;
    line.reverse();
    for ancestor in line {
        let last = ancestor.id == record.id;
        let facts = store.catalogue().query(
            "SELECT via, number, target, symbol, in_text, expected FROM fact_syscall WHERE checkpoint = ?1",
            &[Value::Integer(ancestor.id.0)],
            ROWS_MAX,
        )?;
        // Few rows are what differed at that checkpoint alone; many are the whole table of a boot.
        if facts.rows.len() > 100 {
            found.clear();
        } else if !last {
            continue;
        }
        for row in facts.rows {
            let via = row.first().and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = row.get(1).and_then(Value::as_i64).unwrap_or(-1);
            found.insert((via, number), row);
        }
    }
    let rows: Vec<_> = found.into_values().collect();
    Ok(vec![convert::table("System calls", &columns, &rows)])
}

fn registers(store: &Store, record: &CheckpointRecord) -> Result<Table, CareError> {
    let mut rows = Vec::new();
    for (vcpu, registers) in store.registers(record.id)?.iter().enumerate() {
        let mut row = |name: &str, value: u64| {
            rows.push(vec![Value::from(vcpu as u64), Value::from(name), Value::address(value)]);
        };
        for (name, value) in [
            ("rip", registers.rip),
            ("rsp", registers.general[7]),
            ("rflags", registers.rflags),
            ("cr0", registers.cr0),
            ("cr2", registers.cr2),
            ("cr3", registers.cr3),
            ("cr4", registers.cr4),
            ("efer", registers.efer),
            ("gs_base", registers.gs_base),
            ("idt_base", registers.idt.base),
            ("gdt_base", registers.gdt.base),
        ] {
            row(name, value);
        }
        if let Some(lstar) = registers.lstar {
            row("lstar", lstar);
        }
    }
    Ok(convert::table("Registers", &["vcpu", "register", "value"].map(str::to_owned), &rows))
}

/// What differs between two checkpoints: violated invariants, tasks, modules, counters; then whose pages changed.
/// With the number of frames that differ.
pub(super) fn differences(
    store: &Arc<Store>,
    from: &CheckpointRecord,
    to: &CheckpointRecord,
) -> Result<(Vec<Table>, u64), CareError> {
    let both = [Value::Integer(from.id.0), Value::Integer(to.id.0)];
    let mut tables = Vec::new();
    for (title, sql) in [
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
            "CPU time and memory of tasks",
            "SELECT b.pid, b.comm, (b.utime_ns + b.stime_ns - a.utime_ns - a.stime_ns) / 1000000 AS cpu_ms, \
             b.rss_pages - a.rss_pages AS rss_pages FROM fact_task a JOIN fact_task b USING (pid, start_time_ns) \
             WHERE a.checkpoint = ?1 AND b.checkpoint = ?2 AND (cpu_ms <> 0 OR b.rss_pages <> a.rss_pages) \
             ORDER BY cpu_ms DESC LIMIT 20",
        ),
        (
            "Modules",
            "SELECT 'new' AS change, name, size_bytes FROM fact_module WHERE checkpoint = ?2 AND name NOT IN \
             (SELECT name FROM fact_module WHERE checkpoint = ?1) \
             UNION ALL SELECT 'gone', name, size_bytes FROM fact_module WHERE checkpoint = ?1 AND name NOT IN \
             (SELECT name FROM fact_module WHERE checkpoint = ?2)",
        ),
        (
            "Counters that moved most",
            "SELECT b.name, a.value AS before, b.value AS after, b.value - a.value AS change \
             FROM fact_counter a JOIN fact_counter b USING (name) WHERE a.checkpoint = ?1 AND b.checkpoint = ?2 \
             AND a.value <> b.value ORDER BY abs(b.value - a.value) * 1.0 / (abs(a.value) + 1) DESC LIMIT 15",
        ),
    ] {
        let rows = store.catalogue().query(sql, &both, ROWS_MAX)?;
        if !rows.rows.is_empty() {
            tables.push(convert::table(title, &rows.columns, &rows.rows));
        }
    }
    let changed = store.changed(from.id, to.id)?;
    let pages = changed.len() as u64;
    if let Some(owners) = owners(store, to, changed.iter().map(|change| change.gfn))? {
        tables.push(owners);
    }
    Ok((tables, pages))
}

/// Whose the frames are, most frames first. `None` when the guest cannot be read.
fn owners(
    store: &Arc<Store>,
    at: &CheckpointRecord,
    changed: impl Iterator<Item = retrovisor_guest::Gfn>,
) -> Result<Option<Table>, CareError> {
    let view = store.view(at.id)?;
    let vcpus = store.registers(at.id)?;
    let mut introspector = Introspector::new();
    let observation = introspector.observe(&view, &vcpus);
    let Some(kernel) = introspector.kernel() else { return Ok(None) };
    let mut map = OwnerMap::build(&kernel, &view, &observation);
    map.trace_allocations(&view);
    let mut count: BTreeMap<String, u64> = BTreeMap::new();
    for gfn in changed.take(PAGES_EXPLAINED_MAX) {
        *count.entry(map.explain(gfn).group()).or_default() += 1;
    }
    let mut rows: Vec<(String, u64)> = count.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let rest: u64 = rows.iter().skip(OWNERS_MAX).map(|(_, pages)| pages).sum();
    rows.truncate(OWNERS_MAX);
    if rest > 0 {
        rows.push(("others".to_owned(), rest));
    }
    let rows: Vec<_> =
        rows.into_iter().map(|(owner, pages)| vec![Value::from(owner), Value::from(pages)]).collect();
    Ok(Some(convert::table("Whose pages changed", &["owner", "pages"].map(str::to_owned), &rows)))
}
