//! Facts as tables: the results of reading checkpoints, in the form that a database stores.
//!
//! A fact type is a struct in `introspect`; its schema maps its fields to columns. The store keeps the rows of each
//! schema by checkpoint without knowing their meaning, so a new fact needs no change there.

use serde::{Deserialize, Serialize};

/// One cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Unknown or absent.
    Null,
    /// A number, count, or flag (0 or 1).
    Integer(i64),
    /// A measured quantity.
    Real(f64),
    /// Text, already made printable.
    Text(String),
}

impl Value {
    /// An address as 16 hexadecimal digits, so that text order is address order.
    #[must_use]
    pub fn address(address: u64) -> Self {
        Self::Text(format!("0x{address:016x}"))
    }

    /// The number, if it is one.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "statistics work in f64; counters beyond 2^53 lose their last bits"
    )]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Real(number) => Some(*number),
            Self::Null | Self::Text(_) => None,
        }
    }

    /// The integer, if it is one.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        if let Self::Integer(number) = self { Some(*number) } else { None }
    }

    /// The text, if it is text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Value {
    /// Counters beyond 2^63 are stored as that bound and not as negative numbers.
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Integer(flag.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Value::Integer`] or null.
    Integer,
    /// [`Value::Real`] or null.
    Real,
    /// [`Value::Text`] or null.
    Text,
}

/// How the values of a column are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeping {
    /// They tell rows apart and change seldom: a row is stored once for all checkpoints in which it is the same.
    #[default]
    Stable,
    /// The same, and there is an index of the checkpoints in which a value was first and last seen.
    Sought,
    /// They change at most checkpoints, like counters: each checkpoint has its own.
    Volatile,
}

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name in lower snake case, unit last.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// How its values are kept. This decides about the space they take, and not about the rows that are read.
    pub keeping: Keeping,
}

impl Column {
    /// A column whose values are stable.
    #[must_use]
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, keeping: Keeping::Stable }
    }

    /// The same column with values that are kept in another way.
    #[must_use]
    pub const fn kept(self, keeping: Keeping) -> Self {
        Self { keeping, ..self }
    }
}

/// The shape of one fact table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Table name: `fact_task`.
    pub table: &'static str,
    /// The columns after `checkpoint`.
    pub columns: &'static [Column],
}

/// The facts of one kind from one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its shape.
    pub schema: &'static Schema,
    /// One row for each fact, one cell for each column.
    pub rows: Vec<Vec<Value>>,
}
