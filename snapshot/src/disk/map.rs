use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::content::ContentRef;
use crate::content_list;
use crate::varint;

/// Blocks in a chunk: 2 MiB of the disk.
const CHUNK_BLOCKS: usize = 512;
/// The same, to count with blocks.
const CHUNK: u64 = CHUNK_BLOCKS as u64;
/// The content of a block that was never written: that of the base image.
pub(crate) const BASE: ContentRef = ContentRef::from_code(1);

type Chunk = [u64; CHUNK_BLOCKS];

/// The content of every block of a disk at one checkpoint; 1 is "as in the base image". Only blocks that differ from
/// the base take memory, and clones share equal chunks.
#[derive(Clone, Debug)]
pub(crate) struct DiskMap {
    blocks: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

impl DiskMap {
    /// All as in the base image.
    pub(crate) fn base(blocks: u64) -> Self {
        Self { blocks, chunks: BTreeMap::new() }
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The content of a block; past the end: as in the base.
    pub(crate) fn get(&self, block: u64) -> ContentRef {
        let chunk = self.chunks.get(&(block / CHUNK));
        chunk.map_or(BASE, |chunk| ContentRef::from_code(chunk[slot(block)]))
    }

    /// Changes one block; past the end it does nothing.
    pub(crate) fn set(&mut self, block: u64, content: ContentRef) {
        if block < self.blocks && self.get(block) != content {
            let chunk =
                self.chunks.entry(block / CHUNK).or_insert_with(|| Arc::new([BASE.code(); CHUNK_BLOCKS]));
            Arc::make_mut(chunk)[slot(block)] = content.code();
        }
    }

    /// Changes consecutive blocks, of which there may be very many.
    pub(crate) fn fill(&mut self, first: u64, count: u64, content: ContentRef) {
        let end = first.saturating_add(count).min(self.blocks);
        if first >= end {
            return;
        }
        if content == BASE {
            // Where there is no chunk, all is as in the base already.
            let there: Vec<u64> =
                self.chunks.range(first / CHUNK..end.div_ceil(CHUNK)).map(|(at, _)| *at).collect();
            for at in there {
                for block in (at * CHUNK).max(first)..((at + 1) * CHUNK).min(end) {
                    self.set(block, content);
                }
            }
            return;
        }
        for block in first..end {
            self.set(block, content);
        }
    }

    /// The blocks that are not as in the base, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, ContentRef)> + '_ {
        let blocks = |(at, chunk): (&u64, &Arc<Chunk>)| {
            let (first, chunk) = (at * CHUNK, Arc::clone(chunk));
            (0..CHUNK).map(move |slot| (first + slot, chunk[usize::try_from(slot).unwrap_or(0)]))
        };
        let coded = self.chunks.iter().flat_map(blocks);
        coded
            .filter(|(_, code)| *code != BASE.code())
            .map(|(block, code)| (block, ContentRef::from_code(code)))
    }

    /// Those of them in a range.
    pub(crate) fn written(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, ContentRef)> + '_ {
        let chunks = self.chunks.range(blocks.start / CHUNK..blocks.end.div_ceil(CHUNK));
        let coded = chunks.flat_map(move |(at, chunk)| {
            let from = (at * CHUNK).max(blocks.start);
            let to = ((at + 1) * CHUNK).min(blocks.end);
            (from..to).map(|block| (block, chunk[slot(block)]))
        });
        coded
            .filter(|(_, code)| *code != BASE.code())
            .map(|(block, code)| (block, ContentRef::from_code(code)))
    }

    /// The blocks in which two maps of the same disk differ: block, here, there. Shared chunks are skipped.
    pub(crate) fn diff(&self, other: &Self) -> Vec<(u64, ContentRef, ContentRef)> {
        let nothing = Arc::new([BASE.code(); CHUNK_BLOCKS]);
        let mut differing = Vec::new();
        let mut compare = |at: u64, here: &Arc<Chunk>, there: &Arc<Chunk>| {
            if Arc::ptr_eq(here, there) {
                return;
            }
            let both = here.iter().zip(there.iter()).zip(at * CHUNK..);
            let differ = both.filter(|((here, there), _)| here != there);
            differing.extend(differ.map(|((here, there), block)| {
                (block, ContentRef::from_code(*here), ContentRef::from_code(*there))
            }));
        };
        let (mut mine, mut theirs) = (self.chunks.iter().peekable(), other.chunks.iter().peekable());
        loop {
            match (mine.peek().copied(), theirs.peek().copied()) {
                (Some((at, here)), there) if there.is_none_or(|(other, _)| at < other) => {
                    compare(*at, here, &nothing);
                    mine.next();
                }
                (here, Some((at, there))) if here.is_none_or(|(other, _)| at < other) => {
                    compare(*at, &nothing, there);
                    theirs.next();
                }
                (Some((at, here)), Some((_, there))) => {
                    compare(*at, here, there);
                    mine.next();
                    theirs.next();
                }
                _ => break,
            }
        }
        differing
    }

    /// The map as bytes, for a keyframe: the number of chunks that are not all base, the distance of each from the one
    /// before, then their blocks as a list of contents.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let written: Vec<_> =
            self.chunks.iter().filter(|(_, chunk)| chunk.iter().any(|code| *code != BASE.code())).collect();
        let mut bytes = Vec::new();
        varint::push(&mut bytes, written.len() as u64);
        let mut expected = 0;
        for (at, _) in &written {
            varint::push(&mut bytes, **at - expected);
            expected = **at + 1;
        }
        let codes =
            written.iter().flat_map(|(_, chunk)| chunk.iter().map(|code| ContentRef::from_code(*code)));
        bytes.extend(content_list::encode(codes));
        bytes
    }

    /// Decodes the bytes of [`DiskMap::encode`]; `None` when they are not a map of this many blocks.
    pub(crate) fn decode(mut bytes: &[u8], blocks: u64) -> Option<Self> {
        let chunks_max = blocks.div_ceil(CHUNK);
        let count = varint::take(&mut bytes)?;
        // Every chunk takes at least a byte.
        if count > chunks_max || count > bytes.len() as u64 {
            return None;
        }
        let mut places = Vec::new();
        let mut expected = 0_u64;
        for _ in 0..count {
            let at = expected.checked_add(varint::take(&mut bytes)?).filter(|at| *at < chunks_max)?;
            places.push(at);
            expected = at + 1;
        }
        let length = usize::try_from(count.checked_mul(CHUNK)?).ok()?;
        let list = content_list::decode(bytes, length)?;
        let mut map = Self::base(blocks);
        for (at, contents) in places.into_iter().zip(list.chunks(CHUNK_BLOCKS)) {
            let mut chunk = [BASE.code(); CHUNK_BLOCKS];
            for ((code, content), block) in chunk.iter_mut().zip(contents).zip(at * CHUNK..) {
                if block >= blocks && *content != BASE {
                    return None;
                }
                *code = content.code();
            }
            map.chunks.insert(at, Arc::new(chunk));
        }
        Some(map)
    }
}

fn slot(block: u64) -> usize {
    // Below the blocks of a chunk.
    usize::try_from(block % CHUNK).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_map_behaves_like_an_array(
            blocks in 1_u64..3000,
            changes in prop::collection::vec((0_u64..3000, 0_u64..9), 0..200),
            runs in prop::collection::vec((0_u64..3000, 0_u64..2000, 0_u64..4), 0..4),
            more in prop::collection::vec((0_u64..3000, 0_u64..9), 0..50),
        ) {
            let mut map = DiskMap::base(blocks);
            let mut model = vec![BASE; usize::try_from(blocks).unwrap()];
            for (block, code) in changes {
                map.set(block, ContentRef::from_code(code));
                if let Some(place) = model.get_mut(usize::try_from(block).unwrap()) {
                    *place = ContentRef::from_code(code);
                }
            }
            for (first, count, code) in runs {
                map.fill(first, count, ContentRef::from_code(code));
                let content = ContentRef::from_code(code);
                let from = usize::try_from(first).unwrap();
                model.iter_mut().skip(from).take(usize::try_from(count).unwrap()).for_each(|place| *place = content);
            }
            let all = |map: &DiskMap| (0..blocks).map(|block| map.get(block)).collect::<Vec<_>>();
            prop_assert_eq!(&all(&map), &model);
            let written: Vec<_> = (0..).zip(&model).filter(|(_, content)| **content != BASE).map(|(at, content)| (at, *content)).collect();
            prop_assert!(map.iter().eq(written.iter().copied()));
            let part = blocks / 3..blocks - blocks / 4;
            let within = written.iter().copied().filter(|(block, _)| part.contains(block));
            prop_assert!(map.written(part.clone()).eq(within));
            prop_assert_eq!(map.get(blocks + 5000), BASE);
            let mut other = map.clone();
            for (block, code) in more {
                other.set(block, ContentRef::from_code(code));
            }
            let differ: Vec<_> = (0..blocks).filter(|block| map.get(*block) != other.get(*block))
                .map(|block| (block, map.get(block), other.get(block))).collect();
            prop_assert_eq!(map.diff(&other), differ);
            let back = DiskMap::decode(&map.encode(), blocks).unwrap();
            prop_assert_eq!(all(&back), model);
            prop_assert!(back.diff(&map).is_empty());
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>, blocks in 0_u64..1 << 40) {
            if let Some(map) = DiskMap::decode(&bytes, blocks) {
                prop_assert!(map.iter().all(|(block, _)| block < blocks));
            }
        }
    }

    #[test]
    fn what_nobody_wrote_to_takes_no_room() {
        let mut map = DiskMap::base(1 << 40);
        map.fill(0, 1 << 40, BASE);
        map.set((1 << 40) - 1, ContentRef::Zero);
        assert!(map.encode().len() < 20);
        assert_eq!(map.chunks.len(), 1);
    }
}
