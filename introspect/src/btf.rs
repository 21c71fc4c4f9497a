//! The kernel's own description of its types (BPF Type Format), from guest memory.

mod export;
mod header;
mod leaves;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod sample;

pub use export::{Member, Shape};
pub(crate) use leaves::{Leaf, LeafKind};

use header::{
    Header, KIND_ARRAY, KIND_CONST, KIND_ENUM, KIND_ENUM64, KIND_FLOAT, KIND_INT, KIND_POINTER,
    KIND_RESTRICT, KIND_STRUCT, KIND_TYPE_TAG, KIND_TYPEDEF, KIND_UNION, KIND_VOLATILE, three_words,
};

use crate::{hash, name_index::NameIndex, printable::printable, section::Section};

/// Where a member is in its structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Field {
    /// From the start of the structure.
    pub(crate) offset_bytes: u64,
    /// Of the member; for a bit field the bytes that must be read.
    pub(crate) size_bytes: u64,
    /// First bit (from `offset_bytes`) and count of a bit field.
    pub(crate) bits: Option<(u8, u8)>,
    /// The type.
    pub(crate) type_id: u32,
}

/// Bound on nested anonymous members and on chains of typedefs. Real types are far below it.
const DEPTH_MAX: u32 = 32;
/// Bound on the bytes of types and strings together; Debian's kernels have 4 to 8 MiB.
pub(crate) const BYTES_MAX: usize = 64 << 20;

/// A complete BTF blob in which every type is well-formed.
pub(crate) struct Types {
    bytes: Section,
    strings: Section,
    /// Type id − 1 → offset in `bytes`.
    offsets: Section,
    /// Name of a struct, union, enum or typedef → ids (several kinds can share a name).
    names: NameIndex,
    /// Name of an enumerator → the enums (type ids) in which it may be.
    enumerators: NameIndex,
}

impl Types {
    /// Total bytes that a BTF header announces (header, types, strings); `None` when it is no BTF header.
    pub(crate) fn announced_bytes(header: &[u8]) -> Option<usize> {
        let word = |at: usize| header.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let magic = header.first_chunk::<4>()? == &[0x9f, 0xeb, 1, 0];
        let (header_length, type_at, type_length) = (word(4)?, word(8)?, word(12)?);
        let (string_at, string_length) = (word(16)?, word(20)?);
        let fits = magic && header_length >= 24 && type_at == 0 && string_at == type_length;
        let total = u64::from(header_length) + u64::from(type_length) + u64::from(string_length);
        usize::try_from(total).ok().filter(|total| fits && *total <= BYTES_MAX)
    }

    /// Parses a blob; `None` unless every type in it is well-formed.
    pub(crate) fn parse(blob: &[u8]) -> Option<Self> {
        let total = Self::announced_bytes(blob)?;
        let word =
            |at: usize| blob.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
        let (header_length, type_length) = (word(4)?, word(12)?);
        let bytes = blob.get(header_length..header_length + type_length)?;
        let strings = blob.get(header_length + type_length..total)?;
        Self::index(bytes, strings)
    }

    /// Walks every type, and records the offset of each and the names.
    fn index(bytes: &[u8], strings: &[u8]) -> Option<Self> {
        let string = |at: u32| until_nul(strings.get(usize::try_from(at).ok()?..)?);
        let (mut at, mut offsets) = (0, Vec::new());
        let (mut names, mut enumerators) = (Vec::new(), Vec::new());
        while at < bytes.len() {
            let header = Header::of(bytes.get(at..)?.first_chunk()?, at)?;
            let next = header.end().filter(|next| *next <= bytes.len())?;
            let id = u32::try_from(offsets.len() + 1).ok().filter(|id| *id < NameIndex::NUMBERS)?;
            offsets.push(u32::try_from(at).ok()?);
            let name = string(header.name)?;
            if matches!(header.kind, KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_TYPEDEF) {
                names.push((hash::of_name(name), id));
            }
            if matches!(header.kind, KIND_ENUM | KIND_ENUM64) {
                for item in bytes.get(header.rest..next)?.chunks_exact(header.member_bytes()) {
                    let name = item.first_chunk().and_then(|at| string(u32::from_le_bytes(*at)));
                    enumerators.extend(name.map(|name| (hash::of_name(name), id)));
                }
            }
            at = next;
        }
        (!offsets.is_empty()).then(|| Self {
            bytes: bytes.to_vec().into(),
            strings: strings.to_vec().into(),
            offsets: offsets.into_iter().collect(),
            names: NameIndex::new(&names),
            enumerators: NameIndex::new(&enumerators),
        })
    }

    /// Restores the types from the result of [`Self::sections`]; `None` when they cannot be valid types.
    pub(crate) fn from_sections(sections: [Section; 7]) -> Option<Self> {
        let [bytes, strings, offsets, name_buckets, names, item_buckets, items] = sections;
        let names = NameIndex::from_sections(name_buckets, names)?;
        let enumerators = NameIndex::from_sections(item_buckets, items)?;
        Some(Self { bytes, strings, offsets, names, enumerators })
    }

    pub(crate) fn sections(&self) -> [&Section; 7] {
        let ([name_buckets, names], [item_buckets, items]) =
            (self.names.sections(), self.enumerators.sections());
        [&self.bytes, &self.strings, &self.offsets, name_buckets, names, item_buckets, items]
    }

    /// Whether every string is shorter than [`Section::PIECE_BYTES_MAX`], so that it can be read from a library file.
    pub(crate) fn can_be_kept(&self) -> bool {
        let strings = self.strings.bytes().unwrap_or_default();
        strings.split(|byte| *byte == 0).all(|string| string.len() < Section::PIECE_BYTES_MAX)
    }

    /// How many types there are.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len() / 4
    }

    /// The field of a structure by path: `comm`, or `se.sum_exec_runtime` through embedded structures.
    /// Members of anonymous structs and unions are found as C finds them.
    pub(crate) fn field(&self, structure: &str, path: &str) -> Option<Field> {
        self.field_of(self.structure(structure)?, path)
    }

    fn field_of(&self, mut id: u32, path: &str) -> Option<Field> {
        let mut field = Field::default();
        for part in path.split('.') {
            let member = self.member(self.resolve(id)?, part.as_bytes(), 0)?;
            field = Field { offset_bytes: field.offset_bytes.checked_add(member.offset_bytes)?, ..member };
            id = member.type_id;
        }
        Some(field)
    }

    /// Bytes of a structure.
    pub(crate) fn size_of(&self, structure: &str) -> Option<u64> {
        self.size(self.structure(structure)?, 0)
    }

    /// For a field that is an array: bytes of an element, and their number.
    pub(crate) fn array(&self, field: Field) -> Option<(u64, u64)> {
        let header = self.header(self.resolve(field.type_id)?)?;
        let element = (header.kind == KIND_ARRAY).then(|| self.word(header.rest))??;
        Some((self.size(element, 0)?, u64::from(self.word(header.rest + 8)?)))
    }

    /// An element of a field that is an array, as a field of the same structure.
    pub(crate) fn element(&self, field: Field, index: u64) -> Option<Field> {
        let header = self.header(self.resolve(field.type_id)?)?;
        let type_id = (header.kind == KIND_ARRAY).then(|| self.word(header.rest))??;
        let size_bytes = self.size(type_id, 0)?;
        let offset_bytes = field.offset_bytes.checked_add(size_bytes.checked_mul(index)?)?;
        Some(Field { offset_bytes, size_bytes, bits: None, type_id })
    }

    /// All items of the enum in which the item `member` is, in their order: name and value.
    pub(crate) fn enum_with(&self, member: &str) -> Vec<(String, i64)> {
        let headers = self.enumerators.candidates(member.as_bytes()).filter_map(|id| self.header(id));
        let has = |header: &Header| {
            matches!(header.kind, KIND_ENUM | KIND_ENUM64)
                && (0..header.length).any(|item| {
                    let name = self.word(header.rest + item * header.member_bytes());
                    name.is_some_and(|name| self.is_named(name, member.as_bytes()))
                })
        };
        let Some(header) = headers.filter(has).last() else { return Vec::new() };
        let item = |item: usize| {
            let at = header.rest + item * header.member_bytes();
            let name = printable(self.name(self.word(at)?)?);
            let low = self.word(at + 4)?;
            let value = if header.kind == KIND_ENUM64 {
                (u64::from(self.word(at + 8)?) << 32 | u64::from(low)).cast_signed()
            } else {
                i64::from(low.cast_signed())
            };
            Some((name, value))
        };
        (0..header.length).map_while(item).collect()
    }

    /// The value of one enumerator.
    pub(crate) fn enumerator(&self, member: &str) -> Option<i64> {
        self.enum_with(member).into_iter().find(|(name, _)| name == member).map(|(_, value)| value)
    }

    /// The id of a struct or union by name; a typedef of that name leads to what it names.
    pub(crate) fn structure(&self, name: &str) -> Option<u32> {
        let of = |wanted: fn(u8) -> bool| {
            self.names.candidates(name.as_bytes()).find(|id| {
                self.header(*id)
                    .is_some_and(|header| wanted(header.kind) && self.is_named(header.name, name.as_bytes()))
            })
        };
        of(|kind| matches!(kind, KIND_STRUCT | KIND_UNION))
            .or_else(|| self.resolve(of(|kind| kind == KIND_TYPEDEF)?))
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            let header = self.header(id)?;
            match header.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = header.size_or_type;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<Field> {
        let header = self.header(id).filter(|header| matches!(header.kind, KIND_STRUCT | KIND_UNION))?;
        for item in 0..header.length {
            let [member_name, type_id, place] = self.words(header.rest + item * 12)?;
            let (bit, bit_count) =
                if header.bit_fields { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            if member_name == 0 && depth < DEPTH_MAX {
                let inner = self.resolve(type_id).and_then(|inner| self.member(inner, name, depth + 1));
                if let Some(inner) = inner {
                    return Some(Field { offset_bytes: u64::from(bit / 8) + inner.offset_bytes, ..inner });
                }
            }
            if member_name != 0 && self.is_named(member_name, name) {
                let offset_bytes = u64::from(bit / 8);
                let (size_bytes, bits) = if bit_count > 0 {
                    let first = bit % 8;
                    let bits = (u8::try_from(first).ok()?, u8::try_from(bit_count).ok()?);
                    (u64::from((first + bit_count).div_ceil(8)), Some(bits))
                } else {
                    (self.size(type_id, 0).unwrap_or(0), None)
                };
                return Some(Field { offset_bytes, size_bytes, bits, type_id });
            }
        }
        None
    }

    fn size(&self, id: u32, depth: u32) -> Option<u64> {
        let header = self.header(self.resolve(id)?)?;
        match header.kind {
            KIND_POINTER => Some(8),
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FLOAT => {
                Some(header.size_or_type.into())
            }
            KIND_ARRAY if depth < DEPTH_MAX => {
                let element = self.size(self.word(header.rest)?, depth + 1)?;
                element.checked_mul(self.word(header.rest + 8)?.into())
            }
            _ => None,
        }
    }

    fn header(&self, id: u32) -> Option<Header> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        let at = usize::try_from(self.offsets.word(index.checked_mul(4)?)?).ok()?;
        Header::of(self.bytes.get(at, 12)?.first_chunk()?, at)
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.bytes.word(at)
    }

    fn words(&self, at: usize) -> Option<[u32; 3]> {
        self.bytes.get(at, 12)?.first_chunk().map(three_words)
    }

    /// The string at an offset of the string section.
    fn name(&self, at: u32) -> Option<&[u8]> {
        until_nul(self.strings.rest(usize::try_from(at).ok()?)?)
    }

    /// Whether the string at an offset of the string section is this one.
    fn is_named(&self, at: u32, name: &[u8]) -> bool {
        let rest = usize::try_from(at).ok().and_then(|at| self.strings.rest(at));
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn until_nul(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{sample::blob, *};

    #[test]
    fn members_are_found_through_anonymous_ones_and_typedefs() {
        let types = Types::parse(&blob()).unwrap();
        let place = |path| {
            types.field("outer_t", path).map(|field| (field.offset_bytes, field.size_bytes, field.bits))
        };
        assert_eq!(place("a"), Some((0, 4, None)));
        assert_eq!(place("b"), Some((8, 4, None)));
        assert_eq!(place("d"), Some((12, 1, Some((3, 5)))));
        assert_eq!(place("e"), Some((8, 8, None)));
        assert_eq!(place("name"), Some((16, 16, None)));
        assert_eq!(place("nothing"), None);
        assert_eq!(types.array(types.field("outer", "name").unwrap()), Some((1, 16)));
        assert_eq!(types.size_of("outer"), Some(32));
        assert_eq!(types.enum_with("RED"), [("RED".to_owned(), 0), ("BLUE".to_owned(), 5)]);
        assert_eq!(types.enumerator("BLUE"), Some(5));
    }

    #[test]
    fn a_structure_is_a_list_of_plain_values() {
        let types = Types::parse(&blob()).unwrap();
        let leaves = types.leaves(types.structure("outer").unwrap());
        let all: Vec<_> =
            leaves.iter().map(|leaf| (leaf.path.as_str(), leaf.offset_bytes, leaf.bits)).collect();
        let expected = [
            ("a", 0, None),
            ("b", 8, None),
            ("e", 8, None),
            ("c", 12, Some((0, 3))),
            ("d", 12, Some((3, 5))),
            ("name", 16, None),
        ];
        assert_eq!(all, expected);
        assert_eq!(leaves[5].kind, LeafKind::Text);
        assert_eq!(types.value_name(9, 5).as_deref(), Some("BLUE"));
    }

    #[test]
    fn a_stale_copy_does_not_survive_the_walk() {
        let mut stale = blob();
        stale[24 + 4 + 3] = 31;
        assert!(Types::parse(&stale).is_none());
        assert!(Types::parse(&blob()[..90]).is_none());
    }

    proptest! {
        #[test]
        fn mutated_blobs_never_panic(changes in prop::collection::vec((0_usize..400, any::<u8>()), 1..8)) {
            let mut blob = blob();
            for (at, byte) in changes {
                let at = at % blob.len();
                blob[at] = byte;
            }
            if let Some(types) = Types::parse(&blob) {
                for path in ["a", "b", "c", "d", "e", "name", "a.b"] {
                    if let Some(field) = types.field("outer", path) {
                        types.array(field);
                        types.element(field, 3);
                    }
                }
                types.enum_with("BLUE");
                types.size_of("outer");
                types.leaves(types.structure("outer").unwrap_or(0));
                types.variables();
                types.value_name(9, 5);
            }
        }
    }
}
