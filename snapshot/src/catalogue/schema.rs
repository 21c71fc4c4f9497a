use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::abort::Abort;
use super::fact::plain;
use crate::error::{Error, Result};

/// `RVRS`: identifies the file to `file(1)` and to this program.
pub(crate) const APPLICATION_ID: i32 = 0x5256_5253;

/// A step from one format to the next: statements, then what they cannot do.
type Step = (&'static str, Option<fn(&Transaction<'_>) -> Result<(), Abort>>);

/// The steps; the first makes a new catalogue.
const STEPS: &[Step] = &[
    (include_str!("schema_v1.sql"), None),
    (include_str!("schema_v2.sql"), None),
    (include_str!("schema_v3.sql"), None),
    (include_str!("schema_v4.sql"), Some(plain::migrate)),
];

/// The newest format known.
pub(crate) fn newest() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// Migrates the catalogue to the newest format, step by step, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection, dir: &Path, path: &Path) -> Result<()> {
    let sql = |source| Error::sql("bringing it to the newest format", path, source);
    let found = format(connection).map_err(sql)?;
    let empty = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        .map_err(sql)?
        == 0;
    if !(found == 0 && empty) {
        identify(connection, path)?;
    }
    if found > newest() {
        return Err(Error::NewerStore { dir: dir.to_owned(), found, known: newest() });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for (at, (statements, more)) in STEPS.iter().enumerate().skip(done) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        transaction.execute_batch(statements).map_err(sql)?;
        if let Some(more) = more {
            more(&transaction).map_err(|abort| match abort {
                Abort::Sql(source) => sql(source),
                Abort::Named(error) => error,
            })?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        transaction.pragma_update(None, "user_version", at as u64 + 1).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    Ok(())
}

/// Checks that a catalogue opened for reading has a format that can be read here.
pub(super) fn check(connection: &Connection, dir: &Path, path: &Path) -> Result<(), Abort> {
    identify(connection, path)?;
    let (found, known, dir) = (format(connection)?, newest(), dir.to_owned());
    match found.cmp(&known) {
        std::cmp::Ordering::Less => Err(Error::OlderStore { dir, found, known }.into()),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Error::NewerStore { dir, found, known }.into()),
    }
}

fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn identify(connection: &Connection, path: &Path) -> Result<()> {
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|source| Error::sql("reading its application id", path, source))?;
    if id == APPLICATION_ID {
        Ok(())
    } else {
        let what = format!("it is an SQLite database with application id {id:#x}, not {APPLICATION_ID:#x}");
        Err(Error::NotAStore { path: path.to_owned(), what })
    }
}
