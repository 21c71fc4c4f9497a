//! A type as a list of the plain values in it.

use super::Types;
use super::header::{
    KIND_ARRAY, KIND_ENUM, KIND_ENUM64, KIND_INT, KIND_POINTER, KIND_STRUCT, KIND_UNION, KIND_VARIABLE,
};
use crate::printable::printable;

/// A plain value somewhere in a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// `se.sum_exec_runtime`, `rlim[3].rlim_cur`.
    pub(crate) path: String,
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
    /// First bit and count of a bit field.
    pub(crate) bits: Option<(u8, u8)>,
    pub(crate) kind: LeafKind,
}

/// How to format a plain value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeafKind {
    Signed,
    Unsigned,
    Boolean,
    /// Characters up to a NUL.
    Text,
    Pointer,
    /// A value of the enum with this type id.
    Enumeration(u32),
    /// A value whose type is not decoded.
    Bytes,
}

const LEAVES_MAX: usize = 8192;
const NESTING_MAX: u32 = 16;
/// Longer arrays become one leaf of bytes.
const ELEMENTS_MAX: u64 = 64;
const SIGNED: u32 = 1;
const BOOLEAN: u32 = 4;

impl Types {
    /// Every plain value of a structure, by offset. Members of a union come one after the other.
    pub(crate) fn leaves(&self, type_id: u32) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        self.gather(type_id, "", 0, 0, &mut leaves);
        leaves.sort_by_key(|leaf| leaf.offset_bytes);
        leaves
    }

    /// Every per-CPU variable of the kernel, by name.
    pub(crate) fn variables(&self) -> Vec<(String, u32)> {
        let ids = 1..=u32::try_from(self.len()).unwrap_or(u32::MAX);
        let variables = ids.filter_map(|id| self.header(id)).filter(|header| header.kind == KIND_VARIABLE);
        variables
            .filter_map(|header| Some((printable(self.name(header.name)?), header.size_or_type)))
            .collect()
    }

    /// The name of a value of an enum.
    pub(crate) fn value_name(&self, id: u32, value: u64) -> Option<String> {
        let header = self.header(id)?;
        (0..header.length).find_map(|item| {
            let at = header.rest + item * header.member_bytes();
            let low = u64::from(self.word(at + 4)?);
            let high = if header.kind == KIND_ENUM64 { u64::from(self.word(at + 8)?) << 32 } else { 0 };
            let found = value == high | low || (high == 0 && value & 0xffff_ffff == low);
            found.then(|| self.word(at).and_then(|name| Some(printable(self.name(name)?))))?
        })
    }

    fn gather(&self, id: u32, path: &str, offset: u64, depth: u32, leaves: &mut Vec<Leaf>) {
        let Some(id) = self.resolve(id) else { return };
        let (Some(header), Some(size)) = (self.header(id), self.size(id, 0)) else { return };
        if leaves.len() >= LEAVES_MAX || depth > NESTING_MAX || size == 0 {
            return;
        }
        let mut leaf = |kind| {
            leaves.push(Leaf {
                path: path.to_owned(),
                offset_bytes: offset,
                size_bytes: size,
                bits: None,
                kind,
            });
        };
        match header.kind {
            KIND_INT => leaf(match self.word(header.rest).unwrap_or(0) >> 24 & 0xf {
                flags if flags & BOOLEAN != 0 => LeafKind::Boolean,
                flags if flags & SIGNED != 0 => LeafKind::Signed,
                _ => LeafKind::Unsigned,
            }),
            KIND_POINTER => leaf(LeafKind::Pointer),
            KIND_ENUM | KIND_ENUM64 => leaf(LeafKind::Enumeration(id)),
            KIND_ARRAY => {
                let (element, count) = (self.word(header.rest), self.word(header.rest + 8));
                let (Some(element), Some(count)) = (element, count.map(u64::from)) else { return };
                let element_bytes = self.size(element, 0).unwrap_or(0);
                if element_bytes == 1 && self.is_character(element) {
                    leaf(LeafKind::Text);
                } else if count > ELEMENTS_MAX || element_bytes == 0 {
                    leaf(LeafKind::Bytes);
                } else {
                    for number in 0..count {
                        let at = offset + number * element_bytes;
                        self.gather(element, &format!("{path}[{number}]"), at, depth + 1, leaves);
                    }
                }
            }
            KIND_STRUCT | KIND_UNION => self.gather_members(id, path, offset, depth, leaves),
            _ => leaf(LeafKind::Bytes),
        }
    }

    fn gather_members(&self, id: u32, path: &str, offset: u64, depth: u32, leaves: &mut Vec<Leaf>) {
        let Some(header) = self.header(id) else { return };
        for item in 0..header.length {
            let at = header.rest + item * 12;
            let (Some(name), Some(member), Some(place)) =
                (self.word(at), self.word(at + 4), self.word(at + 8))
            else {
                return;
            };
            let (bit, count) = if header.bit_fields { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            let name = self.name(name).map(printable).unwrap_or_default();
            let inner = match (path, name.as_str()) {
                (_, "") => path.to_owned(),
                ("", name) => name.to_owned(),
                (path, name) => format!("{path}.{name}"),
            };
            let Some(start) = offset.checked_add(u64::from(bit / 8)) else { return };
            if count == 0 {
                self.gather(member, &inner, start, depth + 1, leaves);
            } else if let (Ok(first), Ok(bits)) = (u8::try_from(bit % 8), u8::try_from(count)) {
                leaves.push(Leaf {
                    path: inner,
                    offset_bytes: start,
                    size_bytes: u64::from((u32::from(first) + count).div_ceil(8)),
                    bits: Some((first, bits)),
                    kind: LeafKind::Unsigned,
                });
            }
        }
    }

    /// Whether a type is named `char`. Arrays of numbers use other names (`u8`).
    fn is_character(&self, id: u32) -> bool {
        let header = self.resolve(id).and_then(|id| self.header(id));
        header.is_some_and(|header| self.name(header.name) == Some(b"char"))
    }
}
