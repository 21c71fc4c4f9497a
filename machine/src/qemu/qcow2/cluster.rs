//! The places of a disk's clusters in the file: tables of two levels.

use super::header::Header;
use super::source::{Source, read};

/// Bits of a table entry that are an offset; the rest are flags.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The target of the table entry has one reference.
pub(super) const COPIED: u64 = 1 << 63;
/// The cluster is compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
pub(super) const ZERO: u64 = 1;
/// Bound on the entries of an L1 table, as in QEMU: 32 MiB.
const L1_ENTRIES_MAX: u64 = 1 << 22;
/// Unit of the length of compressed data, in bytes.
const SECTOR_BYTES: u64 = 512;

/// The content of a cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// As in the backing file.
    Backing,
    /// Zeros.
    Zero,
    /// The bytes at this offset of the file.
    At(u64),
    /// This many bytes at this offset, or fewer, compressed.
    Compressed { offset: u64, length_bytes: u64 },
}

/// The tables of a disk, or of a snapshot of it. They do not change while the snapshot exists.
#[derive(Clone)]
pub(super) struct Tables {
    cluster_bits: u32,
    has_zero: bool,
    l1: Vec<u64>,
}

impl Tables {
    /// Reads the first level; the second is read as needed.
    pub(super) fn read(
        source: &dyn Source,
        header: &Header,
        l1_offset: u64,
        l1_entries: u32,
        size_bytes: u64,
    ) -> Result<Self, String> {
        let needed = size_bytes.div_ceil(1 << (2 * header.cluster_bits - 3));
        if needed > L1_ENTRIES_MAX {
            return Err(format!("a disk of {size_bytes} bytes is too large for its clusters"));
        }
        if u64::from(l1_entries) < needed {
            return Err("the table of clusters is shorter than the disk".into());
        }
        // At most 32 MiB, as checked above.
        let bytes = read(source, l1_offset, usize::try_from(needed * 8).unwrap_or(usize::MAX))?;
        let mut l1 = Vec::with_capacity(bytes.len() / 8);
        for entry in bytes.as_chunks::<8>().0 {
            let entry = u64::from_be_bytes(*entry) & !COPIED;
            if entry & !OFFSET_MASK != 0 || !entry.is_multiple_of(1 << header.cluster_bits) {
                return Err(format!("the table of clusters has the entry {entry:#x}, which is none"));
            }
            l1.push(entry);
        }
        Ok(Self { cluster_bits: header.cluster_bits, has_zero: header.version >= 3, l1 })
    }

    /// Number of tables of the second level.
    pub(super) fn len(&self) -> usize {
        self.l1.len()
    }

    /// The place of a table of the second level: tables at the same place are equal.
    pub(super) fn offset(&self, table: usize) -> u64 {
        self.l1.get(table).copied().unwrap_or(0)
    }

    /// One table of the second level; `None` when all of it is in the backing file.
    pub(super) fn table(&self, source: &dyn Source, table: usize) -> Result<Option<Vec<Cluster>>, String> {
        let offset = self.offset(table);
        if offset == 0 {
            return Ok(None);
        }
        let bytes = read(source, offset, 1 << self.cluster_bits)?;
        let entries = bytes.as_chunks::<8>().0.iter().map(|entry| self.decode(u64::from_be_bytes(*entry)));
        entries.collect::<Result<_, _>>().map(Some)
    }

    /// The place of one cluster; past the end, in the backing file.
    pub(super) fn entry(&self, source: &dyn Source, cluster: u64) -> Result<Cluster, String> {
        let entries = 1 << (self.cluster_bits - 3);
        let table = self.offset(usize::try_from(cluster / entries).unwrap_or(usize::MAX));
        if table == 0 {
            return Ok(Cluster::Backing);
        }
        let mut entry = [0; 8];
        let offset = table.saturating_add(cluster % entries * 8);
        source.read_at(&mut entry, offset).map_err(|error| error.to_string())?;
        self.decode(u64::from_be_bytes(entry))
    }

    fn decode(&self, entry: u64) -> Result<Cluster, String> {
        if entry & COMPRESSED != 0 {
            let offset_bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << offset_bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
            let length_bytes = (sectors + 1) * SECTOR_BYTES - offset % SECTOR_BYTES;
            return Ok(Cluster::Compressed { offset, length_bytes });
        }
        let offset = entry & OFFSET_MASK;
        let flags = entry & !(OFFSET_MASK | COPIED);
        if !offset.is_multiple_of(1 << self.cluster_bits)
            || flags & !ZERO != 0
            || flags != 0 && !self.has_zero
        {
            return Err(format!("a table of clusters has the entry {entry:#x}, which is none"));
        }
        Ok(match (flags & ZERO, offset) {
            (ZERO, _) => Cluster::Zero,
            (_, 0) => Cluster::Backing,
            (_, offset) => Cluster::At(offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_distinguished() {
        let tables = Tables { cluster_bits: 16, has_zero: true, l1: vec![] };
        assert_eq!(tables.decode(0), Ok(Cluster::Backing));
        assert_eq!(tables.decode(1), Ok(Cluster::Zero));
        assert_eq!(tables.decode(0x3_0001), Ok(Cluster::Zero));
        assert_eq!(tables.decode(COPIED | 0x3_0000), Ok(Cluster::At(0x3_0000)));
        // 8 bits of sectors above 54 bits of offset.
        let entry = COMPRESSED | 3 << 54 | 0x3_0010;
        assert_eq!(tables.decode(entry), Ok(Cluster::Compressed { offset: 0x3_0010, length_bytes: 2032 }));
        for entry in [0x3_0002, 0x3_0200, 1 << 60] {
            assert!(tables.decode(entry).is_err(), "{entry:#x}");
        }
        assert!(Tables { has_zero: false, ..tables }.decode(1).is_err());
    }
}
