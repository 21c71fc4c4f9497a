use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::abort::Abort;
use super::fact::function::{self, Decoded};
use super::fact::memory::FactMemory;
use super::schema;
use crate::error::{Error, Result};
use crate::fair_lock::{FairGuard, FairLock};
use crate::mutex::lock;

/// How long one connection waits for another's write.
const BUSY: Duration = Duration::from_secs(10);
/// Connections for reading that are kept open when idle.
const IDLE_MAX: usize = 4;

/// The catalogue: an SQLite database of machines, timelines, checkpoints, page versions, operations, facts and
/// verdicts. Shared between threads; one writes at a time, readers see what is committed.
pub struct Catalogue {
    dir: PathBuf,
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// After the readers, so that it is closed last: SQLite then leaves no write-ahead log behind.
    writer: Option<Mutex<Connection>>,
    /// Held by transactions that may take long, and by rollbacks while the guest is paused.
    long_writes: FairLock<()>,
    immutable: bool,
    /// What recording facts keeps in memory.
    pub(super) facts: Mutex<FactMemory>,
    /// What reading facts keeps in memory.
    decoded: Arc<Mutex<Decoded>>,
}

/// When a transaction must be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Before the call returns.
    Full,
    /// Survives the end of this process at once, a power cut only after the next full commit.
    Process,
}

impl Catalogue {
    /// Opens the catalogue for writing, making or migrating it when needed. The caller holds the store's lock file.
    pub(crate) fn open_for_writing(dir: &Path, path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let doing = "opening it";
        let mut connection =
            Connection::open_with_flags(path, flags).map_err(|e| not_sqlite(path, doing, e))?;
        connection.busy_timeout(BUSY).map_err(|e| Error::sql(doing, path, e))?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -32768;",
            )
            .map_err(|e| not_sqlite(path, doing, e))?;
        // Each kind of fact needs three.
        connection.set_prepared_statement_cache_capacity(128);
        let decoded = Arc::default();
        function::register(&connection, &decoded).map_err(|e| Error::sql(doing, path, e))?;
        schema::migrate(&mut connection, dir, path)?;
        Ok(Self { decoded, ..Self::new(dir, path, Some(connection), false) })
    }

    /// Opens the catalogue for reading; another process may be writing.
    pub(crate) fn open_for_reading(dir: &Path, path: &Path) -> Result<Self> {
        let kept = match open_reader(path, false) {
            Ok(connection) => Self::new(dir, path, None, false).keep(connection),
            // A medium that cannot be written has no place for the index of the write-ahead log.
            Err(first) => match open_reader(path, true) {
                Ok(connection) if !wal_path(path).exists() => {
                    Self::new(dir, path, None, true).keep(connection)
                }
                _ => return Err(not_sqlite(path, "opening it", first)),
            },
        };
        let catalogue = kept.map_err(|e| not_sqlite(path, "opening it", e))?;
        catalogue.read("checking its format", |reader| schema::check(reader, dir, path))?;
        Ok(catalogue)
    }

    fn new(dir: &Path, path: &Path, writer: Option<Connection>, immutable: bool) -> Self {
        Self {
            dir: dir.to_owned(),
            path: path.to_owned(),
            writer: writer.map(Mutex::new),
            idle: Mutex::default(),
            long_writes: FairLock::new(()),
            immutable,
            facts: Mutex::default(),
            decoded: Arc::default(),
        }
    }

    fn keep(self, connection: Connection) -> rusqlite::Result<Self> {
        function::register(&connection, &self.decoded)?;
        lock(&self.idle).push(connection);
        Ok(self)
    }

    /// Runs `work` on a connection that only reads.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Abort>,
    ) -> Result<T> {
        let kept = lock(&self.idle).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => self.reader().map_err(|e| Error::sql(doing, &self.path, e))?,
        };
        let answer = work(&connection);
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        drop(idle);
        answer.map_err(|abort| self.name(doing, abort))
    }

    /// A new connection that only reads.
    pub(super) fn reader(&self) -> rusqlite::Result<Connection> {
        let connection = open_reader(&self.path, self.immutable)?;
        function::register(&connection, &self.decoded)?;
        Ok(connection)
    }

    /// Runs `work`, which only reads, on the writing connection: its cache stays valid, while the other connections
    /// must read again after each commit.
    pub(crate) fn read_warm<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Abort>,
    ) -> Result<T> {
        match &self.writer {
            Some(writer) => work(&lock(writer)).map_err(|abort| self.name(doing, abort)),
            None => self.read(doing, work),
        }
    }

    /// Runs `work` in one transaction: all of it happens, or nothing.
    pub(crate) fn write<T>(
        &self,
        doing: &'static str,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T> {
        let Some(writer) = &self.writer else {
            return Err(Error::ReadOnly { dir: self.dir.clone() });
        };
        let mut connection = lock(writer);
        let answer = (|| {
            let level = if durability == Durability::Full { "FULL" } else { "NORMAL" };
            connection.pragma_update(None, "synchronous", level)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let answer = work(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        })();
        answer.map_err(|abort| self.name(doing, abort))
    }

    /// [`Catalogue::write`] for a transaction that may take long (an import, a prune, a rewritten pack): it waits
    /// while a rollback has a guest paused. The caller does not hold the content writer.
    pub(crate) fn write_long<T>(
        &self,
        doing: &'static str,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T> {
        let _long = self.exclude_long_writes();
        self.write(doing, durability, work)
    }

    /// Waits until no transaction that may take long is under way. None begins until the guard is dropped.
    pub(crate) fn exclude_long_writes(&self) -> FairGuard<'_, ()> {
        self.long_writes.lock()
    }

    /// Rewrites the database without its free pages, when at least `percent_min` of it (and 1 MiB) is free, and
    /// truncates the write-ahead log. Readers continue meanwhile, writers wait. Returns whether it was rewritten.
    pub(crate) fn vacuum(&self, percent_min: u64) -> Result<bool> {
        const FREE_BYTES_MIN: u64 = 1 << 20;
        let Some(writer) = &self.writer else {
            return Err(Error::ReadOnly { dir: self.dir.clone() });
        };
        let _long = self.exclude_long_writes();
        let connection = lock(writer);
        let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0));
        (|| {
            let (free, all, size) = (number("freelist_count")?, number("page_count")?, number("page_size")?);
            let pays = free.saturating_mul(size) >= FREE_BYTES_MIN
                && free.saturating_mul(100) >= all.saturating_mul(percent_min.max(1));
            if pays {
                connection.execute_batch("VACUUM")?;
            }
            // An active reader prevents the truncation: the next opportunity does it.
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            Ok(pays)
        })()
        .map_err(|source| Error::sql("giving free space back", &self.path, source))
    }

    /// The errors that SQLite finds in its own structure; empty when there are none.
    pub(crate) fn integrity(&self) -> Result<Vec<String>> {
        self.read("checking its structure", |reader| {
            let mut statement = reader.prepare("PRAGMA integrity_check(20)")?;
            let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(lines
                .into_iter()
                .filter(|line| line != "ok")
                .map(|line| format!("catalogue: {line}"))
                .collect())
        })
    }

    /// Bytes of the database file and its write-ahead log.
    pub(crate) fn stored_bytes(&self) -> u64 {
        [self.path.clone(), wal_path(&self.path)]
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|meta| meta.len())
            .sum()
    }

    fn name(&self, doing: &'static str, abort: Abort) -> Error {
        match abort {
            Abort::Sql(source) => Error::sql(doing, &self.path, source),
            Abort::Named(error) => error,
        }
    }
}

fn open_reader(path: &Path, immutable: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if immutable {
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(format!("file:{}?immutable=1", escaped(path)), flags)?
    } else {
        Connection::open_with_flags(path, flags)?
    };
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "cache_size", -8192)?;
    // SQLite opens lazily: this reads the file, so that errors are found here.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// The path as part of a URI.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

fn wal_path(path: &Path) -> PathBuf {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

fn not_sqlite(path: &Path, doing: &'static str, source: rusqlite::Error) -> Error {
    if source.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) {
        Error::NotAStore { path: path.to_owned(), what: "it is not an SQLite database".into() }
    } else {
        Error::sql(doing, path, source)
    }
}
