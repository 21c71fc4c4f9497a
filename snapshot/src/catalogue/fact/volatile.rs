//! The volatile values of an observation as bytes.
//!
//! Before compression: for each kind of fact its number and how many rows follow; for each row how far its slot is
//! from the one before, a bit for each column that is given, and the given cells. What is not given is as in the base.
//! All numbers are varints. A cell is a varint whose lowest two bits say what it is: 0 an integer (the rest is its
//! difference from the base's, zigzagged), 1 null, 2 text (the rest is its length), 3 eight bytes follow (the rest is
//! 0 for an integer, 1 for a real).
//!
//! The first byte of the stored bytes says whether the others are compressed with zstd (1) or not (0).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read as _;

use retrovisor_guest::fact::Value;

use crate::varint;

/// Compression level.
const LEVEL: i32 = 3;
/// Longest bytes before compression.
const LENGTH_MAX: u64 = 256 << 20;
/// Most cells of one observation.
const CELLS_MAX: usize = 1 << 24;
/// The largest difference that fits beside the two bits, after zigzagging.
const DIFFERENCE_MAX: u64 = u64::MAX >> 2;

/// The cells of a row that are given.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    /// A bit for each column.
    given: u64,
    cells: Vec<Value>,
}

impl Row {
    fn cell(&self, column: usize) -> Option<&Value> {
        let bit = 1_u64.checked_shl(u32::try_from(column).ok()?)?;
        let before = (self.given & (bit - 1)).count_ones() as usize;
        if self.given & bit == 0 { None } else { self.cells.get(before) }
    }
}

/// Volatile cells: all of an observation, or those that differ from its base's. The rows of each kind of fact (by its
/// number) by slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cells(BTreeMap<u64, BTreeMap<u32, Row>>);

impl Cells {
    /// Adds a row with all its cells, at most 64.
    pub(super) fn insert(&mut self, fact: u64, slot: u32, cells: Vec<Value>) {
        let given = (0..cells.len().min(64)).fold(0, |given, at| given | 1 << at);
        self.0.entry(fact).or_default().insert(slot, Row { given, cells });
    }

    /// A cell, if it is given. If it is not, it is as in the base, and null if there is none.
    pub(super) fn cell(&self, fact: u64, slot: u32, column: usize) -> Option<&Value> {
        self.0.get(&fact)?.get(&slot)?.cell(column)
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// The values as they are stored: all of them, or what differs from those of `base`.
    pub(super) fn encode(&self, base: Option<&Self>) -> Vec<u8> {
        let mut raw = Vec::new();
        for (fact, rows) in &self.0 {
            let (mut body, mut count, mut last) = (Vec::new(), 0, 0);
            for (slot, row) in rows {
                let before = |at| base.and_then(|base| base.cell(*fact, *slot, at)).unwrap_or(&Value::Null);
                let differs = |at: &usize| row.cell(*at).is_some_and(|cell| cell != before(*at));
                let mask = (0..64).filter(differs).fold(0_u64, |mask, at| mask | 1 << at);
                if mask == 0 {
                    continue;
                }
                varint::push(&mut body, u64::from(*slot - last));
                varint::push(&mut body, mask);
                for at in (0..64).filter(|at| mask >> at & 1 == 1) {
                    push_cell(&mut body, row.cell(at).unwrap_or(&Value::Null), before(at));
                }
                (count, last) = (count + 1, *slot);
            }
            if count > 0 {
                varint::push(&mut raw, *fact);
                varint::push(&mut raw, count);
                raw.extend(body);
            }
        }
        if let Ok(compressed) = zstd::bulk::compress(&raw, LEVEL)
            && compressed.len() < raw.len()
        {
            return [&[1][..], &compressed].concat();
        }
        [&[0][..], &raw].concat()
    }

    /// Reads stored bytes: only the cells that are in them. `None` if they are damaged.
    pub(super) fn decode(stored: &[u8], base: Option<&Self>) -> Option<Self> {
        let raw = match stored.split_first()? {
            (0, rest) => Cow::Borrowed(rest),
            (1, rest) => {
                let mut raw = Vec::new();
                let decoder = zstd::stream::read::Decoder::with_buffer(rest).ok()?;
                let read = decoder.take(LENGTH_MAX + 1).read_to_end(&mut raw).ok()?;
                if read as u64 > LENGTH_MAX {
                    return None;
                }
                Cow::Owned(raw)
            }
            _ => return None,
        };
        let mut from = &raw[..];
        let (mut values, mut room) = (Self::default(), CELLS_MAX);
        while !from.is_empty() {
            let fact = varint::take(&mut from)?;
            let count = varint::take(&mut from)?;
            let rows = values.0.entry(fact).or_default();
            let mut slot = 0_u32;
            for _ in 0..count {
                slot = slot.checked_add(u32::try_from(varint::take(&mut from)?).ok()?)?;
                let given = varint::take(&mut from)?;
                room = room.checked_sub(given.count_ones() as usize)?;
                let before = base.and_then(|base| base.0.get(&fact)?.get(&slot));
                let mut cells = Vec::with_capacity(given.count_ones() as usize);
                for at in (0..64).filter(|at| given >> at & 1 == 1) {
                    let before = before.and_then(|row| row.cell(at)).unwrap_or(&Value::Null);
                    cells.push(take_cell(&mut from, before)?);
                }
                rows.insert(slot, Row { given, cells });
            }
        }
        Some(values)
    }
}

fn integer(value: &Value) -> i64 {
    if let Value::Integer(number) = value { *number } else { 0 }
}

fn push_cell(into: &mut Vec<u8>, cell: &Value, before: &Value) {
    match cell {
        Value::Null => into.push(1),
        Value::Integer(number) => {
            let difference = varint::zigzag(number.wrapping_sub(integer(before)));
            if difference <= DIFFERENCE_MAX {
                varint::push(into, difference << 2);
            } else {
                into.push(3);
                into.extend(number.to_le_bytes());
            }
        }
        Value::Text(text) => {
            varint::push(into, (text.len() as u64) << 2 | 2);
            into.extend(text.as_bytes());
        }
        Value::Real(number) => {
            into.push(1 << 2 | 3);
            into.extend(number.to_le_bytes());
        }
    }
}

fn take_cell(from: &mut &[u8], before: &Value) -> Option<Value> {
    let head = varint::take(from)?;
    let rest = head >> 2;
    Some(match head & 3 {
        0 => Value::Integer(integer(before).wrapping_add(varint::unzigzag(rest))),
        1 => Value::Null,
        2 => {
            let (text, after) = from.split_at_checked(usize::try_from(rest).ok()?)?;
            *from = after;
            Value::Text(std::str::from_utf8(text).ok()?.to_owned())
        }
        _ => {
            let (bytes, after) = from.split_first_chunk()?;
            *from = after;
            match rest {
                0 => Value::Integer(i64::from_le_bytes(*bytes)),
                _ => Value::Real(f64::from_le_bytes(*bytes)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            (-9_i64..9).prop_map(Value::Integer),
            (-1e9..1e9).prop_map(Value::Real),
            "[a-zé]{0,9}".prop_map(Value::Text),
        ]
    }

    fn values() -> impl Strategy<Value = Cells> {
        let row = (0_u64..4, 0_u32..40, prop::collection::vec(cell(), 0..5));
        prop::collection::vec(row, 0..60).prop_map(|rows| {
            let mut values = Cells::default();
            for (fact, slot, cells) in rows {
                values.insert(fact, slot, cells);
            }
            values
        })
    }

    /// Every cell of `one` is in `decoded`, or in `base`.
    fn same(one: &Cells, decoded: &Cells, base: Option<&Cells>) -> bool {
        let cells = one.0.iter().flat_map(|(fact, rows)| {
            rows.iter().flat_map(|(slot, row)| (0..row.cells.len()).map(|at| (*fact, *slot, at)))
        });
        cells.into_iter().all(|(fact, slot, at)| {
            let found = decoded.cell(fact, slot, at).or_else(|| base?.cell(fact, slot, at));
            found.unwrap_or(&Value::Null) == one.cell(fact, slot, at).unwrap()
        })
    }

    proptest! {
        #[test]
        fn values_come_back(first in values(), second in values()) {
            let whole = Cells::decode(&first.encode(None), None).unwrap();
            prop_assert!(same(&first, &whole, None));
            let changes = Cells::decode(&second.encode(Some(&whole)), Some(&whole)).unwrap();
            prop_assert!(same(&second, &changes, Some(&whole)));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>, base in values()) {
            let _ = Cells::decode(&bytes, Some(&base));
            let raw = [&[0][..], &bytes].concat();
            let _ = Cells::decode(&raw, Some(&base));
        }
    }

    #[test]
    fn what_did_not_change_takes_no_space() {
        let mut values = Cells::default();
        for slot in 0..1000 {
            values.insert(1, slot, vec![Value::Integer(i64::from(slot) * 1_000_003), "sleeping".into()]);
        }
        assert_eq!(values.encode(Some(&values)), [0]);
        let mut later = values.clone();
        later.insert(1, 500, vec![Value::Integer(500 * 1_000_003 + 7), "sleeping".into()]);
        assert!(later.encode(Some(&values)).len() < 9);
    }
}
