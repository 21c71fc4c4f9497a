use std::fs::File;
use std::os::unix::fs::FileExt;

/// The first four bytes of every qcow2 file.
pub(in crate::qemu) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// log2 of the cluster size of the files made here.
pub(super) const CLUSTER_BITS: u32 = 16;
/// Bytes in a cluster of the files made here.
pub(super) const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Entries in an L2 table of the files made here.
pub(super) const L2_ENTRIES: usize = CLUSTER / 8;
/// Clusters that one refcount block of 16-bit counts speaks for.
pub(super) const BLOCK_CLUSTERS: usize = CLUSTER / 2;
/// Length of the header of version 3 without extensions.
pub(super) const HEADER_BYTES: usize = 104;
/// log2 of the bits of a reference count: 16.
const REFCOUNT_ORDER: u32 = 4;

/// The fields of a qcow2 header that are used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qemu) struct Header {
    pub(super) cluster_bits: u32,
    pub(in crate::qemu) virtual_size_bytes: u64,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    /// Where the name of the backing file stands, and its length.
    backing: (u64, u32),
}

impl Header {
    /// Reads the header of a file; `None` when it is not a qcow2 file of version 2 or 3.
    pub(in crate::qemu) fn read(file: &File) -> std::io::Result<Option<Self>> {
        let mut bytes = [0; 72];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let version = be32(bytes, 4)?;
        let cluster_bits = be32(bytes, 20)?;
        let known =
            bytes.starts_with(&MAGIC) && (2..=3).contains(&version) && (9..=21).contains(&cluster_bits);
        known.then_some(())?;
        Some(Self {
            cluster_bits,
            virtual_size_bytes: be64(bytes, 24)?,
            snapshots: be32(bytes, 60)?,
            snapshots_offset: be64(bytes, 64)?,
            backing: (be64(bytes, 8)?, be32(bytes, 16)?),
        })
    }

    /// The name of the backing file, where there is one.
    pub(in crate::qemu) fn backing_file(&self, file: &File) -> std::io::Result<Option<Vec<u8>>> {
        let (offset, length) = self.backing;
        if offset == 0 || length > 1023 {
            return Ok(None);
        }
        let mut name = vec![0; length as usize];
        file.read_exact_at(&mut name, offset)?;
        Ok(Some(name))
    }
}

/// What differs between the headers of the files made here.
pub(super) struct NewHeader {
    pub(super) virtual_size_bytes: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) backing: (u64, u32),
}

impl NewHeader {
    /// A header of version 3 whose refcount table is cluster 1.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC);
        out.extend(3_u32.to_be_bytes());
        out.extend(self.backing.0.to_be_bytes());
        out.extend(self.backing.1.to_be_bytes());
        out.extend(CLUSTER_BITS.to_be_bytes());
        out.extend(self.virtual_size_bytes.to_be_bytes());
        out.extend(0_u32.to_be_bytes()); // not encrypted
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(self.l1_offset.to_be_bytes());
        out.extend((CLUSTER as u64).to_be_bytes());
        out.extend(1_u32.to_be_bytes());
        out.extend(self.snapshots.to_be_bytes());
        out.extend(self.snapshots_offset.to_be_bytes());
        out.extend([0; 24]); // no feature bits
        out.extend(REFCOUNT_ORDER.to_be_bytes());
        out.extend(104_u32.to_be_bytes());
        debug_assert_eq!(out.len(), HEADER_BYTES);
        out
    }
}

/// The clusters 1 and 2: a refcount table with one block, which counts each of the first `clusters` once.
pub(super) fn refcounts(clusters: usize) -> Vec<u8> {
    let mut out = vec![0; 2 * CLUSTER];
    out[..8].copy_from_slice(&(2 * CLUSTER as u64).to_be_bytes());
    for count in out[CLUSTER..].chunks_exact_mut(2).take(clusters) {
        count.copy_from_slice(&1_u16.to_be_bytes());
    }
    out
}

pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(size in any::<u64>(), snapshots in any::<u32>(), offset in any::<u64>(), name in any::<(u64, u32)>()) {
            let new = NewHeader { virtual_size_bytes: size, l1_entries: 1, l1_offset: 0, snapshots, snapshots_offset: offset, backing: name };
            let expected = Header { cluster_bits: 16, virtual_size_bytes: size, snapshots, snapshots_offset: offset, backing: name };
            prop_assert_eq!(Header::parse(&new.bytes()), Some(expected));
        }

        #[test]
        fn any_bytes_are_a_header_or_none(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = Header::parse(&bytes);
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend(&bytes);
            let _ = Header::parse(&with_magic);
        }
    }
}
