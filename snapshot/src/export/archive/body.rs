//! Lists of changes, states and counts of an archive as bytes.

use super::Counts;
use super::cell::{part, push_text, text};
use crate::catalogue::{StoredSection, StoredState};
use crate::content::ContentRef;
use crate::content_list;
use crate::varint;

/// Frames or blocks that changed, as many as go into a record.
#[derive(Debug, PartialEq)]
pub(super) struct Changes {
    pub(super) checkpoint: i64,
    /// The disk; 0 for memory.
    pub(super) disk: i64,
    /// Whether the next record continues the same list.
    pub(super) more: bool,
    /// Ascending, with contents by the archive's numbers.
    pub(super) list: Vec<(u64, ContentRef)>,
}

impl Changes {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [self.checkpoint, self.disk] {
            varint::push(&mut bytes, varint::zigzag(number));
        }
        varint::push(&mut bytes, self.more.into());
        varint::push(&mut bytes, self.list.len() as u64);
        let mut expected = 0;
        for (place, _) in &self.list {
            varint::push(&mut bytes, place - expected);
            expected = place + 1;
        }
        bytes.extend(content_list::encode(self.list.iter().map(|(_, content)| *content)));
        bytes
    }

    /// The reverse; none when the bytes are no ascending list.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let checkpoint = varint::unzigzag(varint::take(from)?);
        let disk = varint::unzigzag(varint::take(from)?);
        let more = match varint::take(from)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        // Every place takes at least a byte.
        let count = usize::try_from(varint::take(from)?).ok().filter(|count| *count <= from.len())?;
        let mut places = Vec::with_capacity(count);
        let mut expected = 0_u64;
        for _ in 0..count {
            let place = expected.checked_add(varint::take(from)?).filter(|place| *place < i64::MAX as u64)?;
            places.push(place);
            expected = place + 1;
        }
        let contents = content_list::decode(from, count)?;
        Some(Self { checkpoint, disk, more, list: places.into_iter().zip(contents).collect() })
    }
}

/// A state; the lists of contents have the archive's numbers.
pub(super) fn encode_state(checkpoint: i64, state: &StoredState) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint::push(&mut bytes, varint::zigzag(checkpoint));
    push_text(&mut bytes, &state.vcpus);
    push_text(&mut bytes, &state.disks);
    for section in &state.sections {
        push_text(&mut bytes, &section.format);
        varint::push(&mut bytes, section.length_bytes);
        varint::push(&mut bytes, section.contents.len() as u64);
        bytes.extend(&section.contents);
    }
    bytes
}

/// The reverse; the hash is not known yet.
pub(super) fn decode_state(mut bytes: &[u8]) -> Option<(i64, StoredState)> {
    let from = &mut bytes;
    let checkpoint = varint::unzigzag(varint::take(from)?);
    let (vcpus, disks) = (text(from)?, text(from)?);
    let mut sections = Vec::new();
    while !from.is_empty() {
        let format = text(from)?;
        let length_bytes = varint::take(from)?;
        sections.push(StoredSection { format, length_bytes, contents: part(from)?.to_vec() });
    }
    Some((checkpoint, StoredState { vcpus, disks, sections, hash: [0; 32] }))
}

/// Pairs of numbers.
pub(super) fn encode_pairs(pairs: &[(i64, i64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (a, b) in pairs {
        varint::push(&mut bytes, varint::zigzag(*a));
        varint::push(&mut bytes, varint::zigzag(*b));
    }
    bytes
}

pub(super) fn decode_pairs(mut bytes: &[u8]) -> Option<Vec<(i64, i64)>> {
    let mut pairs = Vec::new();
    while !bytes.is_empty() {
        let a = varint::unzigzag(varint::take(&mut bytes)?);
        pairs.push((a, varint::unzigzag(varint::take(&mut bytes)?)));
    }
    Some(pairs)
}

impl Counts {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for count in [self.contents, self.rows, self.checkpoints, self.disks] {
            varint::push(&mut bytes, count);
        }
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let mut next = || varint::take(from);
        let counts = Self { contents: next()?, rows: next()?, checkpoints: next()?, disks: next()? };
        bytes.is_empty().then_some(counts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn changes_come_back(
            places in prop::collection::btree_map(0_u64..1 << 40, 0_u64..9, 0..50), checkpoint: i64, disk: i64, more: bool
        ) {
            let list = places.into_iter().map(|(place, code)| (place, ContentRef::from_code(code))).collect();
            let changes = Changes { checkpoint, disk, more, list };
            prop_assert_eq!(Changes::decode(&changes.encode()), Some(changes));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            if let Some(changes) = Changes::decode(&bytes) {
                prop_assert!(changes.list.is_sorted_by(|a, b| a.0 < b.0));
            }
            let _ = (decode_state(&bytes), decode_pairs(&bytes), Counts::decode(&bytes));
        }
    }
}
