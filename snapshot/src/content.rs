use serde::{Deserialize, Serialize};

/// The content of a frame of a checkpoint, by number. Zero and removed are states of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentRef {
    /// Zeros.
    Zero,
    /// The guest gave the frame back; it reads as zeros.
    Removed,
    /// Bytes in a pack.
    Stored(ContentId),
}

/// Identifies 4 KiB of stored bytes within one store; equal ids mean equal bytes. Never 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentId(pub u64);

/// The first number that names stored bytes.
pub(crate) const FIRST_CONTENT: u64 = 2;

impl ContentRef {
    /// Its number in the catalogue: 0 zero, 1 removed, from 2 on stored bytes.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Removed => 1,
            Self::Stored(id) => id.0,
        }
    }

    /// The reverse of [`ContentRef::code`].
    #[must_use]
    pub const fn from_code(code: u64) -> Self {
        match code {
            0 => Self::Zero,
            1 => Self::Removed,
            id => Self::Stored(ContentId(id)),
        }
    }

    /// The id of the stored bytes, if there are any.
    #[must_use]
    pub const fn stored(self) -> Option<ContentId> {
        if let Self::Stored(id) = self { Some(id) } else { None }
    }
}
