//! Facts of checkpoints as tables for people.

use std::collections::BTreeMap;
use std::sync::Arc;

use retrovisor_guest::fact::Value;
use retrovisor_introspect::{Introspector, OwnerReader, Select, Share, question, questions};
use retrovisor_manager::{ManagerError, kernel_library};
use retrovisor_proto::v1::Table;
use retrovisor_snapshot::{CheckpointRecord, Store};

use super::convert;

/// Most rows of a fact table that are returned.
const ROWS_MAX: usize = 20_000;
/// Owners of memory that are named.
const OWNERS_MAX: usize = 24;

/// The tables that answer a question.
pub(super) fn tables(
    store: &Arc<Store>,
    record: &CheckpointRecord,
    what: &str,
) -> Result<Vec<Table>, ManagerError> {
    let question = question(what).ok_or_else(|| {
        let known: Vec<_> = questions().iter().map(|question| question.name).collect();
        let what = what.escape_debug();
        ManagerError::Invalid(format!("there is no `{what}` to inspect, only: {}", known.join(", ")))
    })?;
    let known = store.catalogue().fact_tables()?;
    let tables = question.selects.iter().map(|select| run(store, record, &known, select));
    let mut tables = tables.collect::<Result<Vec<Table>, ManagerError>>()?;
    match question.name {
        "registers" => tables.push(registers(store, record)?),
        "syscalls" => tables.extend(syscalls(store, record)?),
        "memory" => tables.extend(memory(store, record)?),
        _ => {}
    }
    Ok(tables)
}

/// What memory is used for, by kind and by name; nothing for a guest that cannot be read.
fn memory(store: &Arc<Store>, record: &CheckpointRecord) -> Result<Vec<Table>, ManagerError> {
    let view = store.view(record.id)?;
    let mut introspector = Introspector::with_library(kernel_library(store));
    let observation = introspector.observe(&view, &store.registers(record.id)?);
    let Some(kernel) = introspector.kernel() else { return Ok(Vec::new()) };
    let mut map = OwnerReader::new().read(&kernel, &view, &observation);
    map.trace_allocations(&view);
    let shares = map.shares();
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for share in &shares {
        *kinds.entry(share.kind).or_default() += share.pages;
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, pages)| std::cmp::Reverse(*pages));
    let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let kib = |pages: u64| Value::from(pages * 4);
    let by_kind: Vec<_> = kinds
        .into_iter()
        .map(|(kind, pages)| vec![Value::from(kind), Value::from(pages), kib(pages)])
        .collect();
    let named = shares.iter().filter(|share| share.kind != "free").take(OWNERS_MAX);
    let row = |Share { kind, owner, pages }: &Share| {
        vec![Value::from(*kind), Value::from(owner.as_str()), Value::from(*pages), kib(*pages)]
    };
    let by_owner: Vec<_> = named.map(row).collect();
    Ok(vec![
        convert::table("What fills memory", &columns(&["kind", "pages", "kib"]), &by_kind, false),
        convert::table("Largest owners", &columns(&["kind", "owner", "pages", "kib"]), &by_owner, false),
    ])
}

fn run(
    store: &Store,
    record: &CheckpointRecord,
    known: &[String],
    Select { title, table, sql }: &Select,
) -> Result<Table, ManagerError> {
    // Facts of a kind that was never recorded have no table.
    if known.iter().all(|known| known != table) {
        let note = ["no facts of this kind were recorded".to_owned()];
        return Ok(convert::table(title, &note, &[], false));
    }
    let rows = store.catalogue().query(sql, &[Value::Integer(record.id.0)], ROWS_MAX)?;
    let truncated = rows.truncated;
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
    Ok(convert::table(title, &columns, &rows, truncated))
}

/// The table of the first checkpoint of this boot, with the entries that differ in this checkpoint.
fn syscalls(store: &Store, record: &CheckpointRecord) -> Result<Vec<Table>, ManagerError> {
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
    Ok(vec![convert::table("System calls", &columns, &rows, false)])
}

fn registers(store: &Store, record: &CheckpointRecord) -> Result<Table, ManagerError> {
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
    Ok(convert::table("Registers", &["vcpu", "register", "value"].map(str::to_owned), &rows, false))
}
