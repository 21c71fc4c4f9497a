use std::collections::VecDeque;
use std::ops::Range;

use super::coverage::Coverage;
use super::walk::Walk;
use crate::clock::now_ms;

/// Blocks that are compared together: 64 KiB, a cluster of QEMU's overlays.
const PIECE_BLOCKS: u64 = 16;
/// Pieces that are looked at for one checkpoint, at most: those that nothing was written to cost little.
const PIECES_MAX: u64 = 256;

/// What the audit knows of a disk: how far it is compared, and from which checkpoint on a block is in doubt.
///
/// A checkpoint is known to be exact in a block that was compared with it, and in every block if all written blocks were
/// read for it. When a block was compared last follows from its place in the walk.
pub(super) struct DiskLedger {
    blocks: u64,
    walk: Walk,
    /// The next position of the walk.
    position: u64,
    /// Up to which position of the walk, exclusive, blocks were compared with which checkpoint: about the last round,
    /// ascending.
    compared: VecDeque<(u64, u64)>,
    /// No block is in doubt in checkpoints before this one.
    floor: u64,
    coverage: Coverage,
    mismatches: u64,
    last_mismatch_ms: Option<i64>,
}

impl DiskLedger {
    /// Nothing is known of the disk in checkpoints after `newest`; those up to it are not concerned.
    pub(super) fn new(blocks: u64, newest: u64, seed: u64) -> Self {
        let pieces = blocks.div_ceil(PIECE_BLOCKS);
        Self {
            blocks,
            walk: Walk::new(pieces, seed),
            position: 0,
            compared: VecDeque::new(),
            floor: newest + 1,
            coverage: Coverage::new(pieces),
            mismatches: 0,
            last_mismatch_ms: None,
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The blocks to be compared next, piece by piece.
    pub(super) fn next_pieces(&self) -> Vec<Range<u64>> {
        let count = self.walk.length().min(PIECES_MAX);
        let pieces = (self.position..self.position + count).map(|position| self.walk.index(position));
        pieces.map(|piece| piece * PIECE_BLOCKS..((piece + 1) * PIECE_BLOCKS).min(self.blocks)).collect()
    }

    /// The next pieces were compared with a checkpoint. Those that differ are to be dealt with before this.
    pub(super) fn advance(&mut self, pieces: u64, sequence: u64) {
        self.position += pieces;
        self.compared.push_back((self.position, sequence));
        // Every piece was visited again since.
        while self.compared.front().is_some_and(|(to, _)| to + self.walk.length() <= self.position) {
            self.compared.pop_front();
        }
        self.coverage.walked_to(self.position);
    }

    /// The disk is exact in a checkpoint: every written block was read for it, or compared with it.
    pub(super) fn whole(&mut self, sequence: u64) {
        self.floor = self.floor.max(sequence + 1);
    }

    /// An audit that began then has compared the whole disk.
    pub(super) fn audited(&mut self, since_ms: i64) {
        self.coverage.audited(since_ms, self.walk.length());
    }

    /// Blocks were not what a checkpoint says.
    pub(super) fn mismatched(&mut self, blocks: u64) {
        self.mismatches += blocks;
        self.last_mismatch_ms = Some(now_ms());
    }

    /// The first checkpoint that is doubtful if the block is not what the newest one says.
    pub(super) fn doubt_from(&self, block: u64) -> u64 {
        let round = self.walk.length();
        let place = self.walk.position(block / PIECE_BLOCKS);
        let begun = self.position / round * round;
        // The last position below `position` at which the block was visited.
        let visited = if begun + place < self.position {
            Some(begun + place)
        } else {
            (begun + place).checked_sub(round)
        };
        let compared = visited.and_then(|at| {
            let part = self.compared.partition_point(|(to, _)| *to <= at);
            self.compared.get(part)
        });
        self.floor.max(compared.map_or(0, |(_, sequence)| sequence + 1))
    }

    /// How much was compared, since when, and what was found.
    pub(super) fn status(&self, disk: &str) -> DiskAuditStatus {
        let (since_ms, pieces) = self.coverage.proven();
        DiskAuditStatus {
            disk: disk.to_owned(),
            blocks: self.blocks,
            proven_blocks: pieces.saturating_mul(PIECE_BLOCKS).min(self.blocks),
            since_ms,
            mismatches: self.mismatches,
            last_mismatch_ms: self.last_mismatch_ms,
        }
    }
}

/// How much of a disk is proven: compared with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DiskAuditStatus {
    /// The disk's name.
    pub disk: String,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Blocks proven since `since_ms`.
    pub proven_blocks: u64,
    /// Since when they are counted: milliseconds since 1970 UTC.
    pub since_ms: i64,
    /// Blocks that differed from a checkpoint, since the recorder began.
    pub mismatches: u64,
    /// When the last of them was found.
    pub last_mismatch_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compared with a list of the checkpoint that each block was compared with last.
        #[test]
        fn a_block_is_in_doubt_since_it_was_compared_last(
            blocks in 1_u64..20_000,
            seed: u64,
            // For each checkpoint how many pieces are compared; 0: all written blocks are read.
            steps in prop::collection::vec(0_u64..400, 1..60),
        ) {
            let mut ledger = DiskLedger::new(blocks, 0, seed);
            let mut doubt_from = vec![1; usize::try_from(blocks).unwrap()];
            for (sequence, step) in (1..).zip(steps) {
                let pieces = ledger.next_pieces();
                if step == 0 {
                    ledger.whole(sequence);
                    doubt_from.fill(sequence + 1);
                } else {
                    let pieces = &pieces[..pieces.len().min(usize::try_from(step).unwrap())];
                    for block in pieces.iter().cloned().flatten() {
                        doubt_from[usize::try_from(block).unwrap()] = sequence + 1;
                    }
                    ledger.advance(pieces.len() as u64, sequence);
                }
                for (block, from) in (0..).zip(&doubt_from) {
                    prop_assert_eq!(ledger.doubt_from(block), *from);
                }
            }
        }
    }

    #[test]
    fn every_block_is_compared_once_in_a_round() {
        let blocks = 10_000;
        let mut ledger = DiskLedger::new(blocks, 0, 3);
        let mut seen = vec![0; 10_000];
        let pieces = blocks.div_ceil(PIECE_BLOCKS);
        for _ in 0..pieces {
            let next = ledger.next_pieces().swap_remove(0);
            next.for_each(|block| seen[usize::try_from(block).unwrap()] += 1);
            let proven = ledger.status("d0").proven_blocks;
            ledger.advance(1, 1);
            assert!(ledger.status("d0").proven_blocks > proven);
        }
        assert!(seen.iter().all(|count| *count == 1));
        assert_eq!(ledger.status("d0").proven_blocks, blocks);
    }
}
