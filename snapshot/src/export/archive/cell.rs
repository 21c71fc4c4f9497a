//! Rows of an archive as bytes.

use retrovisor_guest::fact::{Kind, Value};

use crate::varint;

/// Rows of a table.
#[derive(Debug, PartialEq)]
pub(super) struct Rows {
    pub(super) table: String,
    /// Names and kinds; the kinds are used for facts only.
    pub(super) columns: Vec<(String, Kind)>,
    /// Cells of all rows, one row after the other: fact rows begin with their checkpoint, which is no column.
    pub(super) cells: Vec<Value>,
}

/// A record of rows is closed once it has this many bytes.
pub(super) const ROWS_BYTES: usize = 1 << 20;
/// Most columns of a table.
const COLUMNS_MAX: usize = 256;
/// Most cells of a record: each takes a byte, and the last row may go beyond.
const CELLS_MAX: usize = ROWS_BYTES + COLUMNS_MAX + 1;
const KINDS: [Kind; 3] = [Kind::Integer, Kind::Real, Kind::Text];

impl Rows {
    /// The head before the rows' cells.
    pub(super) fn head(table: &str, columns: &[(String, Kind)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_text(&mut bytes, table);
        varint::push(&mut bytes, columns.len() as u64);
        for (name, kind) in columns {
            push_text(&mut bytes, name);
            let at = KINDS.iter().position(|other| other == kind).unwrap_or(0);
            varint::push(&mut bytes, at as u64);
        }
        bytes
    }

    /// Appends a cell.
    pub(super) fn push(bytes: &mut Vec<u8>, value: &Value) {
        match value {
            Value::Null => bytes.push(0),
            Value::Integer(number) => {
                bytes.push(1);
                varint::push(bytes, varint::zigzag(*number));
            }
            Value::Real(number) => {
                bytes.push(2);
                bytes.extend(number.to_le_bytes());
            }
            Value::Text(text) => {
                bytes.push(3);
                push_text(bytes, text);
            }
        }
    }

    /// Decodes rows; none when the bytes are invalid. Uses no more memory than the bytes can encode.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let table = text(from)?;
        let mut columns = Vec::new();
        let count = varint::take(from)?;
        if count > COLUMNS_MAX as u64 {
            return None;
        }
        for _ in 0..count {
            let name = text(from)?;
            let kind = KINDS.get(usize::try_from(varint::take(from)?).ok()?)?;
            columns.push((name, *kind));
        }
        let mut cells = Vec::new();
        while let Some((tag, rest)) = from.split_first() {
            *from = rest;
            if cells.len() >= CELLS_MAX {
                return None;
            }
            cells.push(match tag {
                0 => Value::Null,
                1 => Value::Integer(varint::unzigzag(varint::take(from)?)),
                2 => {
                    let (number, rest) = from.split_first_chunk()?;
                    *from = rest;
                    Value::Real(f64::from_le_bytes(*number))
                }
                3 => Value::Text(text(from)?),
                _ => return None,
            });
        }
        Some(Self { table, columns, cells })
    }
}

/// Appends a text, its length first.
pub(super) fn push_text(bytes: &mut Vec<u8>, text: &str) {
    varint::push(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
}

/// Takes a text off the front.
pub(super) fn text(from: &mut &[u8]) -> Option<String> {
    String::from_utf8(part(from)?.to_vec()).ok()
}

/// Takes bytes off the front, whose length comes first.
pub(super) fn part<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint::take(from)?).ok()?;
    let (part, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_back(numbers: Vec<(i64, f64, String)>) {
            let columns = vec![("a".to_owned(), Kind::Integer), ("b".to_owned(), Kind::Real), ("c".to_owned(), Kind::Text)];
            let mut bytes = Rows::head("t", &columns);
            let cells: Vec<_> = numbers
                .into_iter()
                .flat_map(|(a, b, c)| [Value::Integer(a), Value::Real(b), Value::Text(c), Value::Null])
                .collect();
            for cell in &cells {
                Rows::push(&mut bytes, cell);
            }
            prop_assert_eq!(Rows::decode(&bytes), Some(Rows { table: "t".into(), columns, cells }));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            let _ = Rows::decode(&bytes);
        }
    }
}
