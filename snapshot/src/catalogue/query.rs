use std::time::{Duration, Instant};

use retrovisor_guest::fact::Value;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, params_from_iter};

use super::connection::Catalogue;
use super::rows::{Cell, Rows, read_rows};
use crate::error::{Error, Result};

/// Time limit of a query.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Instructions of SQLite's virtual machine between two checks of the time.
const CLOCK_STEPS: i32 = 10_000;
/// Longest value and longest statement, in bytes.
const LENGTH_MAX: i32 = 16 << 20;
/// Longest statement, in bytes.
const SQL_LENGTH_MAX: i32 = 1 << 20;
impl Catalogue {
    /// Runs one SELECT (`WITH`, `EXPLAIN`, `PRAGMA table_info`): at most `limit_rows` rows, within 30 s. It can neither
    /// write, attach other databases nor read files.
    pub fn query(&self, sql: &str, params: &[Value], limit_rows: usize) -> Result<Rows> {
        self.query_within(sql, params, limit_rows, TIME_MAX)
    }

    /// [`Catalogue::query`] with a time limit of its own.
    pub fn query_within(
        &self,
        sql: &str,
        params: &[Value],
        limit_rows: usize,
        limit: Duration,
    ) -> Result<Rows> {
        let mut connection = self.reader().map_err(failed)?;
        guard(&mut connection, limit).map_err(failed)?;
        let answer = (|| {
            let mut statement = connection.prepare(sql)?;
            if statement.column_count() == 0 || !statement.readonly() {
                return Err(rusqlite::Error::InvalidQuery);
            }
            read_rows(&mut statement, params_from_iter(params.iter().map(Cell)), limit_rows)
        })();
        answer.map_err(|source| match source {
            rusqlite::Error::InvalidQuery => Error::QueryRefused("it does not read".into()),
            rusqlite::Error::MultipleStatement => Error::QueryRefused("it is more than one statement".into()),
            other => match other.sqlite_error_code() {
                Some(ErrorCode::OperationInterrupted) => {
                    Error::QueryTimeout { limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
                }
                Some(ErrorCode::AuthorizationForStatementDenied) => {
                    Error::QueryRefused("it would write or reach outside the store".into())
                }
                Some(ErrorCode::ReadOnly) => Error::QueryRefused("it would write".into()),
                _ => Error::QueryFailed(other.to_string()),
            },
        })
    }
}

fn failed(source: rusqlite::Error) -> Error {
    Error::Catalogue { doing: "preparing a query", source }
}

/// Restricts a connection to the needs of a query.
fn guard(connection: &mut Connection, limit: Duration) -> rusqlite::Result<()> {
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LENGTH_MAX)?;
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_LENGTH_MAX)?;
    connection.authorizer(Some(authorize))?;
    let start = Instant::now();
    connection.progress_handler(CLOCK_STEPS, Some(move || start.elapsed() > limit))
}

fn authorize(context: AuthContext<'_>) -> Authorization {
    const PRAGMAS: [&str; 7] = [
        "table_info",
        "table_xinfo",
        "table_list",
        "index_list",
        "index_info",
        "index_xinfo",
        "function_list",
    ];
    match context.action {
        AuthAction::Select | AuthAction::Recursive | AuthAction::Read { .. } => Authorization::Allow,
        AuthAction::Function { function_name } if function_name != "load_extension" => Authorization::Allow,
        AuthAction::Pragma { pragma_name, .. } if PRAGMAS.contains(&pragma_name) => Authorization::Allow,
        _ => Authorization::Deny,
    }
}
