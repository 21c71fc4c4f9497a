//! Facts of a guest like a Debian server: what they take on the disk, and how fast they are recorded, read and found.
//!
//! Shapes and changes follow recordings of such a guest under load (1,240 checkpoints, 1 s apart: systemd, `PostgreSQL`,
//! nginx, redis, cron), in which a checkpoint had 104 tasks, 202 counters, 248 sockets, 306 open files and 205 mounts,
//! and between two checkpoints 1.3 tasks, 0.4 sockets and 7 open files were replaced, and the values of 20 tasks and
//! 32 counters changed. Here there are twice as many of each but counters and modules, which makes 2,500 rows.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::fact::{Column, Keeping, Kind, Schema, Table as Facts, Value};
use retrovisor_guest::{Machine, MemoryLayout, PAGE_SIZE};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{Access, CheckpointId, Store};

use crate::guest::Guest;
use crate::table::Table;

/// Checkpoints with 2,500 rows each.
const SERVER: u64 = 1_536;
/// Checkpoints with few rows, in which values are looked for.
const LONG: u64 = 100_000;

const fn stable(name: &'static str, kind: Kind) -> Column {
    Column::new(name, kind)
}

const fn volatile(name: &'static str, kind: Kind) -> Column {
    Column::new(name, kind).kept(Keeping::Volatile)
}

const fn sought(name: &'static str, kind: Kind) -> Column {
    Column::new(name, kind).kept(Keeping::Sought)
}

static TASK: Schema = Schema {
    table: "fact_task",
    columns: &[
        stable("pid", Kind::Integer),
        stable("ppid", Kind::Integer),
        stable("comm", Kind::Text),
        stable("uid", Kind::Integer),
        stable("start_time_ns", Kind::Integer),
        stable("address", Kind::Text),
        stable("command_line", Kind::Text),
        sought("executable", Kind::Text),
        volatile("state", Kind::Text),
        volatile("utime_ns", Kind::Integer),
        volatile("stime_ns", Kind::Integer),
        volatile("switches", Kind::Integer),
        volatile("rss_pages", Kind::Integer),
        volatile("waits_in", Kind::Text),
    ],
};
static COUNTER: Schema = Schema {
    table: "fact_counter",
    columns: &[stable("name", Kind::Text), volatile("value", Kind::Integer)],
};
static SOCKET: Schema = Schema {
    table: "fact_socket",
    columns: &[
        stable("protocol", Kind::Text),
        stable("state", Kind::Text),
        stable("local_address", Kind::Text),
        sought("local_port", Kind::Integer),
        sought("remote_address", Kind::Text),
        stable("inode", Kind::Integer),
        stable("pid", Kind::Integer),
    ],
};
static OPEN_FILE: Schema = Schema {
    table: "fact_open_file",
    columns: &[
        stable("pid", Kind::Integer),
        stable("fd", Kind::Integer),
        stable("kind", Kind::Text),
        stable("path", Kind::Text),
        stable("inode", Kind::Integer),
        stable("flags", Kind::Integer),
        volatile("position", Kind::Integer),
    ],
};
static MOUNT: Schema = Schema {
    table: "fact_mount",
    columns: &[
        stable("namespace", Kind::Integer),
        stable("id", Kind::Integer),
        stable("point", Kind::Text),
        stable("source", Kind::Text),
        stable("options", Kind::Text),
    ],
};

/// A server whose facts change.
struct Server {
    random: Guest,
    next: i64,
    tables: Vec<Facts>,
    /// How many rows of each kind are replaced in ten steps, and of how many a volatile value changes in one.
    changes: [(u64, u64); 5],
}

impl Server {
    fn new(rows: [u64; 5], changes: [(u64, u64); 5]) -> Self {
        let schemas = [&TASK, &COUNTER, &SOCKET, &OPEN_FILE, &MOUNT];
        let tables = schemas.map(|schema| Facts { schema, rows: Vec::new() }).into();
        let mut server = Self { random: Guest::new(7), next: 100, tables, changes };
        for (kind, count) in rows.into_iter().enumerate() {
            for _ in 0..count {
                let row = server.row(kind);
                server.tables[kind].rows.push(row);
            }
        }
        server
    }

    fn row(&mut self, kind: usize) -> Vec<Value> {
        self.next += 1;
        let (next, random) = (self.next, self.random.below(60));
        let text = |text: String| Value::Text(text);
        match kind {
            0 => vec![
                next.into(),
                Value::Integer(1),
                text(format!("service-{random}")),
                Value::Integer(random.cast_signed() % 5),
                Value::Integer(next * 1_000_003),
                Value::address(self.random.next() | 0xff << 56),
                text(format!(
                    "/usr/sbin/service-{random} --serve --config /etc/service-{random}/{next}.conf"
                )),
                text(format!("/usr/sbin/service-{random}")),
                "S".into(),
                Value::Integer(1_000_000),
                Value::Integer(500_000),
                Value::Integer(12),
                Value::Integer(2_000),
                "ep_poll+0x33".into(),
            ],
            1 => vec![text(format!("nr_counter_{next}")), Value::Integer(next << 16)],
            2 => vec![
                "tcp".into(),
                if next % 4 == 0 { "LISTEN" } else { "ESTABLISHED" }.into(),
                "10.0.2.15".into(),
                Value::Integer(if next % 4 == 0 { random.cast_signed() } else { 32_768 + next % 28_000 }),
                text(format!("192.0.2.{}", random * 4)),
                next.into(),
                Value::Integer(random.cast_signed()),
            ],
            3 => vec![
                Value::Integer(next / 9),
                Value::Integer(next % 9),
                "file".into(),
                text(format!("/var/lib/service-{random}/data/{:x}", next * 77_777)),
                Value::Integer(next * 3),
                Value::Integer(0x8002),
                Value::Integer(0),
            ],
            _ => vec![
                Value::Integer(4_026_531_840 + next % 4),
                next.into(),
                text(format!("/run/credentials/service-{next}")),
                "tmpfs".into(),
                "ro,nosuid,nodev,noexec,relatime,size=1024k".into(),
            ],
        }
    }

    /// A second later.
    fn step(&mut self) {
        for kind in 0..self.tables.len() {
            let (replaced, moved) = self.changes[kind];
            let count = self.tables[kind].rows.len() as u64;
            let replaced = replaced / 10 + u64::from(self.random.below(10) < replaced % 10);
            for _ in 0..replaced {
                let (at, row) = (self.random.below(count) as usize, self.row(kind));
                self.tables[kind].rows[at] = row;
            }
            for _ in 0..moved {
                // The same ones move most.
                let below = self.random.below(count) + 1;
                let at = self.random.below(below) as usize;
                let by = self.random.below(3_000_000).cast_signed();
                let columns = self.tables[kind].schema.columns;
                for (column, cell) in columns.iter().zip(&mut self.tables[kind].rows[at]) {
                    match cell {
                        Value::Integer(number) if column.keeping == Keeping::Volatile => *number += by >> 8,
                        Value::Text(text) if column.name == "state" => {
                            if by % 8 == 0 { "R" } else { "S" }.clone_into(text);
                        }
                        _ => (),
                    }
                }
            }
        }
    }

    fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }
}

/// A store with this many checkpoints, of which nothing is there but their rows.
fn store(dir: &Path, count: u64) -> (Arc<Store>, Vec<CheckpointId>) {
    let store = Store::open(dir, Access::Create).unwrap();
    let machine = MemoryMachine::new("server", MemoryLayout::flat(16 * PAGE_SIZE as u64).unwrap()).unwrap();
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    drop(store);
    let mut catalogue = rusqlite::Connection::open(dir.join("catalogue.sqlite")).unwrap();
    let transaction = catalogue.transaction().unwrap();
    transaction
        .execute("INSERT INTO timeline (id, machine, created_at_ms) VALUES (1, ?1, 0)", [id.0])
        .unwrap();
    for number in 1..=count {
        transaction
            .prepare_cached(
                "INSERT INTO checkpoint (id, name, machine, timeline, parent, sequence, kind, taken_at_ms, pause_us,
                     dirty_pages, changed_pages, new_pages, zero_pages, stored_bytes, keyframe_distance, keyframe_rows,
                     changes_hash)
                 VALUES (?1, 'c' || ?1, ?2, 1, nullif(?1 - 1, 0), ?1, 'automatic', ?1 * 1000, 0, 0, 0, 0, 0, 0, 0, 0, '')",
            )
            .unwrap()
            .execute(rusqlite::params![number, id.0])
            .unwrap();
    }
    transaction.commit().unwrap();
    drop(catalogue);
    let ids = (1..=count.cast_signed()).map(CheckpointId).collect();
    (Arc::new(Store::open(dir, Access::ReadWrite).unwrap()), ids)
}

/// Records facts of all checkpoints. Returns how long each took, in microseconds.
fn record(store: &Store, ids: &[CheckpointId], server: &mut Server) -> Vec<f64> {
    let mut times = Vec::new();
    for id in ids {
        server.step();
        let start = Instant::now();
        store.catalogue().record_facts(*id, &server.tables).unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times
}

/// Bytes of the database for facts.
fn bytes(dir: &Path) -> f64 {
    let catalogue = rusqlite::Connection::open(dir.join("catalogue.sqlite")).unwrap();
    let sql = "SELECT sum(pgsize) FROM dbstat JOIN sqlite_schema USING (name)
        WHERE tbl_name GLOB 'span_*' OR tbl_name IN ('observation', 'series', 'fact', 'field')";
    catalogue.query_row(sql, [], |row| row.get::<_, f64>(0)).unwrap()
}

pub(crate) fn measure(table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let (here, ids) = store(dir.path(), SERVER);
    let mut server = Server::new([210, 202, 500, 1_170, 420], [(26, 40), (0, 32), (8, 0), (140, 2), (0, 0)]);
    let rows = server.rows();
    let times = record(&here, &ids, &mut server);
    drop(here);
    table.add(&format!("facts.record_us/{rows}"), "us", times);
    table.one(&format!("facts.stored_bytes/{rows}"), "B", bytes(dir.path()) / SERVER as f64);
    let here = Store::open(dir.path(), Access::ReadOnly).unwrap();
    let mut random = Guest::new(3);
    for (name, count) in server.tables.iter().map(|facts| (facts.schema.table, facts.rows.len())) {
        let times = (0..300).map(|_| {
            let id = ids[random.below(SERVER) as usize];
            let start = Instant::now();
            assert_eq!(here.catalogue().facts(id, name).unwrap().rows.len(), count);
            start.elapsed().as_secs_f64() * 1e3
        });
        table.add(&format!("facts.read_ms/{name}/{count}"), "ms", times.collect());
    }
    drop(here);

    let dir = tempfile::tempdir().unwrap();
    let (here, ids) = store(dir.path(), LONG);
    let mut server = Server::new([60, 20, 40, 20, 5], [(14, 10), (0, 10), (4, 0), (5, 1), (0, 0)]);
    record(&here, &ids, &mut server);
    drop(here);
    let here = Store::open(dir.path(), Access::ReadOnly).unwrap();
    let mut ask = |name: &str, sql: &str, values: &dyn Fn(u64) -> Value| {
        let times = (0..50).map(|_| {
            let value = values(random.below(60));
            let start = Instant::now();
            let found = here.catalogue().query(sql, &[value], 100).unwrap().rows;
            assert!(!found.is_empty());
            start.elapsed().as_secs_f64() * 1e3
        });
        table.add(&format!("facts.first_seen_ms/{LONG}/{name}"), "ms", times.collect());
    };
    let seen = "SELECT * FROM v_seen WHERE machine = 'server' AND value = ?1";
    ask("executable", seen, &|at| Value::Text(format!("/usr/sbin/service-{at}")));
    ask("peer", seen, &|at| Value::Text(format!("192.0.2.{}", at * 4)));
    ask("port", seen, &|at| Value::Integer(at.cast_signed()));
    let first = "SELECT checkpoint_name FROM v_fact_task WHERE machine = 'server' AND executable = ?1
        ORDER BY checkpoint LIMIT 1";
    ask("view", first, &|at| Value::Text(format!("/usr/sbin/service-{at}")));
    let all = "SELECT value, first_sequence FROM v_seen WHERE field = 'executable' AND machine > ?1";
    ask("all-executables", all, &|_| Value::Text(String::new()));
}
