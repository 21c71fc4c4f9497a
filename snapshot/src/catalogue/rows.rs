use retrovisor_guest::fact::Value;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Params, Statement, ToSql};

/// Bound on the bytes of one result, so that a query cannot exhaust this process's memory.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The result of a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows, a value a column. Blobs become text: `x'…'` in hexadecimal digits.
    pub rows: Vec<Vec<Value>>,
    /// Whether there would have been more rows.
    pub truncated: bool,
}

/// Reads at most `limit` rows of a statement.
pub(super) fn read_rows(
    statement: &mut Statement<'_>,
    params: impl Params,
    limit: usize,
) -> rusqlite::Result<Rows> {
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut answer = Rows { columns, ..Rows::default() };
    let width = answer.columns.len();
    let mut bytes = 0;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        if answer.rows.len() >= limit || bytes > ANSWER_BYTES_MAX {
            answer.truncated = true;
            break;
        }
        let cells = (0..width).map(|at| row.get_ref(at).map(cell)).collect::<rusqlite::Result<Vec<_>>>()?;
        bytes += cells.iter().map(|cell| 32 + cell.as_str().map_or(0, str::len)).sum::<usize>();
        answer.rows.push(cells);
    }
    Ok(answer)
}

/// A value of any kind.
pub(super) fn cell(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => {
            let mut text = String::with_capacity(bytes.len() * 2 + 3);
            text.push_str("x'");
            for byte in bytes {
                for digit in [byte >> 4, byte & 15] {
                    text.extend(char::from_digit(digit.into(), 16));
                }
            }
            text.push('\'');
            Value::Text(text)
        }
    }
}

/// A cell on its way into SQLite.
pub(super) struct Cell<'a>(pub(super) &'a Value);

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(*number),
            // SQLite has no NaN and would store null; infinities are kept.
            Value::Real(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}
