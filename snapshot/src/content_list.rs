//! Encodes a list of contents as runs, because contents that were written together have consecutive numbers.
//!
//! Each run is `varint(count * 4 + tag)`; tag 0: zero, 1: removed, 2: numbers in a row, 3: one number repeatedly.
//! Tags 2 and 3 are followed by `varint(zigzag(first - expected))`, where `expected` is the number after the last
//! one of the run before (2 at the start).

use crate::content::{ContentId, ContentRef, FIRST_CONTENT};
use crate::varint;

const ZERO: u64 = 0;
const REMOVED: u64 = 1;
const ROW: u64 = 2;
const REPEAT: u64 = 3;

/// Writes the list as runs.
pub(crate) fn encode(list: impl Iterator<Item = ContentRef>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut expected = FIRST_CONTENT;
    let mut run: Option<(u64, u64, u64)> = None; // tag, first, count
    for content in list {
        let code = content.code();
        if let Some((tag, first, count)) = &mut run {
            let goes_on = match *tag {
                ROW => code == *first + *count,
                REPEAT => code == *first,
                tag => code == tag,
            };
            // A run with a single number becomes a repetition when the same number follows.
            let repeats = *tag == ROW && *count == 1 && code == *first;
            if repeats {
                *tag = REPEAT;
            }
            if goes_on || repeats {
                *count += 1;
                continue;
            }
        }
        if let Some(run) = run {
            put(&mut bytes, run, &mut expected);
        }
        let tag = match content {
            ContentRef::Zero => ZERO,
            ContentRef::Removed => REMOVED,
            ContentRef::Stored(_) => ROW,
        };
        run = Some((tag, code, 1));
    }
    if let Some(run) = run {
        put(&mut bytes, run, &mut expected);
    }
    bytes
}

/// Decodes a list of exactly `length` contents; `None` when the bytes are invalid.
pub(crate) fn decode(mut bytes: &[u8], length: usize) -> Option<Vec<ContentRef>> {
    // Short runs can encode long lists: memory is allocated only as the runs are decoded.
    let mut list = Vec::new();
    let mut expected = FIRST_CONTENT;
    while !bytes.is_empty() {
        let head = varint::take(&mut bytes)?;
        let count = usize::try_from(head >> 2).ok()?;
        if count == 0 || count > length - list.len() {
            return None;
        }
        match head & 3 {
            ZERO => list.resize(list.len() + count, ContentRef::Zero),
            REMOVED => list.resize(list.len() + count, ContentRef::Removed),
            tag => {
                let first = expected.checked_add_signed(varint::unzigzag(varint::take(&mut bytes)?))?;
                let end = if tag == ROW { first.checked_add(count as u64 - 1)? } else { first };
                if first < FIRST_CONTENT || end >= i64::MAX as u64 {
                    return None;
                }
                if tag == ROW {
                    list.extend((first..=end).map(|id| ContentRef::Stored(ContentId(id))));
                } else {
                    list.resize(list.len() + count, ContentRef::Stored(ContentId(first)));
                }
                expected = end + 1;
            }
        }
    }
    (list.len() == length).then_some(list)
}

fn put(bytes: &mut Vec<u8>, (tag, first, count): (u64, u64, u64), expected: &mut u64) {
    varint::push(bytes, count << 2 | tag);
    if tag >= ROW {
        varint::push(bytes, varint::zigzag(first.wrapping_sub(*expected).cast_signed()));
        *expected = if tag == ROW { first + count } else { first + 1 };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_come_back(codes in prop::collection::vec(prop_oneof![0_u64..6, Just(1_u64 << 60), 100_u64..110], 0..200)) {
            let list: Vec<_> = codes.into_iter().map(ContentRef::from_code).collect();
            let bytes = encode(list.iter().copied());
            prop_assert_eq!(decode(&bytes, list.len()), Some(list));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>, length in 0_usize..1000) {
            if let Some(list) = decode(&bytes, length) {
                prop_assert_eq!(list.len(), length);
            }
        }
    }

    #[test]
    fn runs_are_short() {
        let row = (2..100_000).map(ContentRef::from_code);
        assert!(encode(row).len() < 6);
        assert!(encode(std::iter::repeat_n(ContentRef::Zero, 1 << 20)).len() < 5);
    }
}
