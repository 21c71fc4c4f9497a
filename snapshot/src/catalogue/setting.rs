use rusqlite::{OptionalExtension, Transaction, params};

use super::connection::{Catalogue, Durability};
use crate::error::Result;

impl Catalogue {
    /// A setting of the store.
    pub(crate) fn setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.read("reading a setting", |reader| {
            let mut statement = reader.prepare_cached("SELECT value FROM setting WHERE name = ?1")?;
            Ok(statement.query_row([name], |row| row.get(0)).optional()?)
        })
    }

    /// Keeps settings of the store, all or none.
    pub(crate) fn set_settings(&self, settings: &[(&str, &[u8])]) -> Result<()> {
        self.write("keeping settings", Durability::Full, |transaction| {
            for (name, value) in settings {
                set(transaction, name, value)?;
            }
            Ok(())
        })
    }
}

/// Keeps one setting.
pub(super) fn set(transaction: &Transaction<'_>, name: &str, value: &[u8]) -> rusqlite::Result<()> {
    transaction
        .execute("INSERT OR REPLACE INTO setting (name, value) VALUES (?1, ?2)", params![name, value])?;
    Ok(())
}
