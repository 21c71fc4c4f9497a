use std::io::{self, Read};
use std::sync::Arc;

use crate::content::ContentRef;
use crate::content_list;

/// Frames in a chunk. Small, so that scattered changes copy little; unchanged chunks are shared between maps.
const CHUNK: usize = 64;

/// Level of compression of full maps, which are written rarely.
const LEVEL: i32 = 3;
/// Bound on the bytes of an encoded map for each page: a run of one, and its number.
const ENCODED_BYTES_MAX: usize = 20;

/// Encoded contents, which are half as large as [`ContentRef`].
type Chunk = [u64; CHUNK];

/// The content of every frame at one checkpoint, by index of frame. Clones share the chunks that do not differ.
#[derive(Clone, Debug)]
pub(crate) struct PageMap {
    pages: usize,
    chunks: Vec<Arc<Chunk>>,
}

impl PageMap {
    /// All zero.
    pub(crate) fn zero(pages: usize) -> Self {
        let zero = Arc::new([0; CHUNK]);
        Self { pages, chunks: std::iter::repeat_n(zero, pages.div_ceil(CHUNK)).collect() }
    }

    /// The content at an index; past the end: zero.
    pub(crate) fn get(&self, index: usize) -> ContentRef {
        self.chunks
            .get(index / CHUNK)
            .map_or(ContentRef::Zero, |chunk| ContentRef::from_code(chunk[index % CHUNK]))
    }

    /// Changes one frame; past the end it does nothing.
    pub(crate) fn set(&mut self, index: usize, content: ContentRef) {
        if index < self.pages && self.get(index) != content {
            Arc::make_mut(&mut self.chunks[index / CHUNK])[index % CHUNK] = content.code();
        }
    }

    /// All frames in order of index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ContentRef> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied()).take(self.pages).map(ContentRef::from_code)
    }

    /// The frames in which two maps of the same layout differ: index, here, there. Shared chunks cost nothing.
    pub(crate) fn diff<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (usize, ContentRef, ContentRef)> + 'a {
        self.chunks
            .iter()
            .zip(&other.chunks)
            .enumerate()
            .filter(|(_, (here, there))| !Arc::ptr_eq(here, there))
            .flat_map(|(at, (here, there))| {
                here.iter().zip(there.iter()).enumerate().filter(|(_, (here, there))| here != there).map(
                    move |(slot, (here, there))| {
                        (at * CHUNK + slot, ContentRef::from_code(*here), ContentRef::from_code(*there))
                    },
                )
            })
    }

    /// The map as bytes, for a keyframe.
    pub(crate) fn encode(&self) -> Vec<u8> {
        content_list::encode(self.iter())
    }

    /// Decodes the bytes of [`PageMap::encode`]; `None` when they are not a map of this many frames.
    pub(crate) fn decode(bytes: &[u8], pages: usize) -> Option<Self> {
        let list = content_list::decode(bytes, pages)?;
        let mut map = Self { pages, chunks: Vec::with_capacity(pages.div_ceil(CHUNK)) };
        let zero = Arc::new([0; CHUNK]);
        for part in list.chunks(CHUNK) {
            let mut chunk = [0; CHUNK];
            for (slot, content) in chunk.iter_mut().zip(part) {
                *slot = content.code();
            }
            map.chunks.push(if chunk == *zero { Arc::clone(&zero) } else { Arc::new(chunk) });
        }
        Some(map)
    }
}

/// An encoded map as it is stored.
pub(crate) fn compress(encoded: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(encoded, LEVEL)
}

/// The reverse of [`compress`], for a map of this many frames. Memory is taken for what comes out, not for what the
/// bytes say will.
pub(crate) fn decompress(stored: &[u8], pages: usize) -> io::Result<Vec<u8>> {
    let bytes_max = pages.saturating_mul(ENCODED_BYTES_MAX) as u64;
    let mut encoded = Vec::new();
    zstd::stream::read::Decoder::with_buffer(stored)?.take(bytes_max + 1).read_to_end(&mut encoded)?;
    if encoded.len() as u64 > bytes_max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_map_behaves_like_an_array(pages in 1_usize..300, changes in prop::collection::vec((0_usize..300, 0_u64..9), 0..200)) {
            let first = PageMap::zero(pages);
            let mut second = first.clone();
            let mut model = vec![ContentRef::Zero; pages];
            for (index, code) in changes {
                second.set(index, ContentRef::from_code(code));
                if let Some(slot) = model.get_mut(index) {
                    *slot = ContentRef::from_code(code);
                }
            }
            prop_assert!(second.iter().eq(model.iter().copied()));
            let differ: Vec<_> = first.diff(&second).map(|(index, ..)| index).collect();
            let expected: Vec<_> = (0..pages).filter(|at| model[*at] != ContentRef::Zero).collect();
            prop_assert_eq!(differ, expected);
            let back = PageMap::decode(&second.encode(), pages).unwrap();
            prop_assert!(back.iter().eq(second.iter()));
            prop_assert!(PageMap::decode(&second.encode(), pages + 1).is_none());
        }
    }
}
