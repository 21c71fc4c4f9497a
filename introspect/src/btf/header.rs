pub(super) const KIND_INT: u8 = 1;
pub(super) const KIND_POINTER: u8 = 2;
pub(super) const KIND_ARRAY: u8 = 3;
pub(super) const KIND_STRUCT: u8 = 4;
pub(super) const KIND_UNION: u8 = 5;
pub(super) const KIND_ENUM: u8 = 6;
pub(super) const KIND_TYPEDEF: u8 = 8;
pub(super) const KIND_VOLATILE: u8 = 9;
pub(super) const KIND_CONST: u8 = 10;
pub(super) const KIND_RESTRICT: u8 = 11;
pub(super) const KIND_FUNCTION_PROTOTYPE: u8 = 13;
pub(super) const KIND_VARIABLE: u8 = 14;
pub(super) const KIND_DATA_SECTION: u8 = 15;
pub(super) const KIND_FLOAT: u8 = 16;
pub(super) const KIND_DECLARATION_TAG: u8 = 17;
pub(super) const KIND_TYPE_TAG: u8 = 18;
pub(super) const KIND_ENUM64: u8 = 19;

/// The common header of every BTF type.
pub(super) struct Header {
    pub(super) name: u32,
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) bit_fields: bool,
    pub(super) size_or_type: u32,
    /// Offset in `bytes` of the data after the header.
    pub(super) rest: usize,
}

impl Header {
    /// The header of the type at an offset.
    pub(super) fn of(bytes: &[u8; 12], at: usize) -> Option<Self> {
        let [name, info, size_or_type] = three_words(bytes);
        Some(Self {
            name,
            length: (info & 0xffff) as usize,
            kind: u8::try_from((info >> 24) & 31).ok()?,
            bit_fields: info >> 31 == 1,
            size_or_type,
            rest: at + 12,
        })
    }

    /// Bytes of one element of the data after the header.
    pub(super) fn member_bytes(&self) -> usize {
        match self.kind {
            KIND_STRUCT | KIND_UNION | KIND_DATA_SECTION | KIND_ENUM64 => 12,
            KIND_ENUM | KIND_FUNCTION_PROTOTYPE => 8,
            _ => 0,
        }
    }

    /// Offset of the next type; `None` for an unknown kind.
    pub(super) fn end(&self) -> Option<usize> {
        let fixed = match self.kind {
            KIND_INT | KIND_VARIABLE | KIND_DECLARATION_TAG => 4,
            KIND_ARRAY => 12,
            0 | 20.. => return None,
            _ => 0,
        };
        Some(self.rest + fixed + self.length * self.member_bytes())
    }
}

pub(super) fn three_words(bytes: &[u8; 12]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}
