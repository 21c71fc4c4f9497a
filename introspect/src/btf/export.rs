//! Types as plain data, for other programs.

use super::Types;
use super::header::{
    Header, KIND_ARRAY, KIND_ENUM, KIND_ENUM64, KIND_FLOAT, KIND_INT, KIND_POINTER, KIND_STRUCT, KIND_UNION,
};
use crate::printable::printable;

/// A type, in as much detail as a reader of memory needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An integer: bytes, and whether it has a sign.
    Integer {
        /// Its name: `unsigned int`.
        name: String,
        /// Bytes.
        bytes: u64,
        /// Whether it has a sign.
        signed: bool,
    },
    /// A pointer to a type.
    Pointer(u32),
    /// An array: element type and count.
    Array(u32, u64),
    /// A structure or a union.
    Structure {
        /// Its name; empty for none.
        name: String,
        /// Whether it is a union.
        union: bool,
        /// Bytes.
        bytes: u64,
        /// The members in their order.
        members: Vec<Member>,
    },
    /// An enum: name, bytes, items.
    Enumeration(String, u64, Vec<(String, i64)>),
    /// A function type or another kind without a memory layout.
    Other,
}

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; empty for an anonymous structure.
    pub name: String,
    /// Bytes from the start of the structure.
    pub offset_bytes: u64,
    /// First bit and count of a bit field.
    pub bits: Option<(u32, u32)>,
    /// Its type.
    pub type_id: u32,
}

impl Types {
    /// A type by number; typedefs and qualifiers are followed. `None` for `void` and past the end.
    pub(crate) fn shape(&self, id: u32) -> Option<Shape> {
        let header = self.header(self.resolve(id)?)?;
        let name = || printable(self.name(header.name).unwrap_or_default());
        let bytes = u64::from(header.size_or_type);
        Some(match header.kind {
            KIND_INT => {
                Shape::Integer { name: name(), bytes, signed: self.word(header.rest)? >> 24 & 1 == 1 }
            }
            KIND_FLOAT => Shape::Integer { name: name(), bytes, signed: true },
            KIND_POINTER => Shape::Pointer(header.size_or_type),
            KIND_ARRAY => Shape::Array(self.word(header.rest)?, self.word(header.rest + 8)?.into()),
            KIND_STRUCT | KIND_UNION => Shape::Structure {
                name: name(),
                union: header.kind == KIND_UNION,
                bytes,
                members: (0..header.length).filter_map(|item| self.shape_member(&header, item)).collect(),
            },
            KIND_ENUM | KIND_ENUM64 => Shape::Enumeration(name(), bytes, self.items(&header)),
            _ => Shape::Other,
        })
    }

    /// The type that a number represents when typedefs and qualifiers are followed.
    pub(crate) fn resolved(&self, id: u32) -> Option<u32> {
        self.resolve(id)
    }

    fn shape_member(&self, header: &Header, item: usize) -> Option<Member> {
        let at = header.rest + item * 12;
        let place = self.word(at + 8)?;
        let (bit, count) = if header.bit_fields { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
        Some(Member {
            name: printable(self.name(self.word(at)?)?),
            offset_bytes: u64::from(bit / 8),
            bits: (count > 0).then_some((bit % 8, count)),
            type_id: self.word(at + 4)?,
        })
    }

    fn items(&self, header: &Header) -> Vec<(String, i64)> {
        let item = |item: usize| {
            let at = header.rest + item * header.member_bytes();
            let low = self.word(at + 4)?;
            let value = match header.kind {
                KIND_ENUM64 => (u64::from(self.word(at + 8)?) << 32 | u64::from(low)).cast_signed(),
                _ => i64::from(low.cast_signed()),
            };
            Some((printable(self.name(self.word(at)?)?), value))
        };
        (0..header.length).filter_map(item).collect()
    }
}
