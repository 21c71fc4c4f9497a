use retrovisor_guest::fact::{Table, Value};

/// Rows with named columns, from new tables or from the snapshot database.
///
/// Cells come from a guest: a missing column, a wrong type or a number that is not finite is read as `None`.
pub(crate) struct Grid<'a> {
    columns: Vec<&'a str>,
    rows: &'a [Vec<Value>],
}

impl<'a> Grid<'a> {
    /// The table of that name among new facts; `None` when there is none.
    pub(crate) fn find(tables: &'a [Table], name: &str) -> Option<Self> {
        let table = tables.iter().find(|table| table.schema.table == name)?;
        Some(Self {
            columns: table.schema.columns.iter().map(|column| column.name).collect(),
            rows: &table.rows,
        })
    }

    /// The rows of a query's result.
    pub(crate) fn new(columns: &'a [String], rows: &'a [Vec<Value>]) -> Self {
        Self { columns: columns.iter().map(String::as_str).collect(), rows }
    }

    /// Each row, at most `limit` of them.
    pub(crate) fn rows(&self, limit: usize) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().take(limit).map(|cells| Row { columns: &self.columns, cells })
    }
}

/// One row of a [`Grid`].
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    columns: &'a [&'a str],
    cells: &'a [Value],
}

impl<'a> Row<'a> {
    fn cell(&self, name: &str) -> Option<&'a Value> {
        self.cells.get(self.columns.iter().position(|column| *column == name)?)
    }

    /// A finite number.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.cell(name)?.as_f64().filter(|number| number.is_finite())
    }

    /// A count; `None` for a negative number.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        u64::try_from(self.cell(name)?.as_i64()?).ok()
    }

    /// Whether a flag is set; `false` when it is absent.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.cell(name).and_then(Value::as_i64).is_some_and(|flag| flag != 0)
    }

    /// Text, or a number written out; at most [`TEXT_MAX`] characters.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.cell(name)? {
            Value::Null => None,
            Value::Text(text) => Some(text.chars().take(TEXT_MAX).collect()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Real(number) => Some(number.to_string()),
        }
    }
}

/// Bound on the characters read from one cell: enough for a name, and limited in memory.
const TEXT_MAX: usize = 256;
