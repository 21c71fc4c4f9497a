use crate::error::Error;

/// Why a transaction stops: SQLite's error, to which the caller adds the action, or one that needs no more context.
pub(crate) enum Abort {
    Sql(rusqlite::Error),
    Named(Error),
}

impl From<rusqlite::Error> for Abort {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sql(source)
    }
}

impl From<Error> for Abort {
    fn from(error: Error) -> Self {
        Self::Named(error)
    }
}
