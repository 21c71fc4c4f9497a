use std::fs::File;

use super::source::{Source, read};

/// The first four bytes of every qcow2 file.
pub(in crate::qemu) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// log2 of the cluster size of the files made here.
pub(super) const CLUSTER_BITS: u32 = 16;
/// Bytes in a cluster of the files made here.
pub(super) const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Entries in an L2 table of the files made here.
pub(super) const L2_ENTRIES: usize = CLUSTER / 8;
/// Clusters that one refcount block of 16-bit counts covers.
pub(super) const BLOCK_CLUSTERS: usize = CLUSTER / 2;
/// Length of the header of version 3 without extensions.
pub(super) const HEADER_BYTES: usize = 104;
/// log2 of the bits of a reference count: 16.
const REFCOUNT_ORDER: u32 = 4;
/// Bound on the bytes of the header that are read: version 3 with all known fields.
const READ_BYTES: usize = 112;
/// Least length of a header: that of version 2.
const V2_BYTES: usize = 72;
/// The extension that names the backing file's format.
pub(super) const BACKING_FORMAT: u32 = 0xE279_2ACA;
/// Bound on the extensions that are read.
const EXTENSIONS_MAX: usize = 64;
/// Features that a reader must know but that make no difference here: counts may be wrong, another compression method
/// than zlib.
const HARMLESS: u64 = 1 | COMPRESSION_TYPE;
const COMPRESSION_TYPE: u64 = 1 << 3;

/// The fields of a qcow2 header that are used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qemu) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(in crate::qemu) virtual_size_bytes: u64,
    encryption: u32,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    /// The place of the name of the backing file, and its length.
    backing: (u64, u32),
    /// Features that a reader must know.
    incompatible: u64,
    pub(super) length_bytes: u32,
    /// How clusters are compressed: 0 zlib, 1 zstd.
    pub(super) compression: u8,
}

impl Header {
    /// Reads the header of a file; `None` when it is not a qcow2 file of version 2 or 3.
    pub(in crate::qemu) fn read(file: &File) -> std::io::Result<Option<Self>> {
        Self::of(file)
    }

    /// The same for any source.
    pub(super) fn of(source: &dyn Source) -> std::io::Result<Option<Self>> {
        let length = usize::try_from(source.length_bytes()?).unwrap_or(usize::MAX).min(READ_BYTES);
        if length < V2_BYTES {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        source.read_at(&mut bytes, 0)?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let version = be32(bytes, 4)?;
        let cluster_bits = be32(bytes, 20)?;
        let known =
            bytes.starts_with(&MAGIC) && (2..=3).contains(&version) && (9..=21).contains(&cluster_bits);
        known.then_some(())?;
        let length_bytes = if version == 2 { 72 } else { be32(bytes, 100)? };
        let incompatible = if version == 2 { 0 } else { be64(bytes, 72)? };
        Some(Self {
            version,
            cluster_bits,
            virtual_size_bytes: be64(bytes, 24)?,
            encryption: be32(bytes, 32)?,
            l1_entries: be32(bytes, 36)?,
            l1_offset: be64(bytes, 40)?,
            snapshots: be32(bytes, 60)?,
            snapshots_offset: be64(bytes, 64)?,
            backing: (be64(bytes, 8)?, be32(bytes, 16)?),
            incompatible,
            length_bytes,
            compression: if incompatible & COMPRESSION_TYPE == 0 { 0 } else { *bytes.get(104)? },
        })
    }

    /// Why the disk in the file cannot be read here, if so.
    pub(super) fn refuse(&self) -> Result<(), String> {
        let unknown = self.incompatible & !HARMLESS;
        let what = match () {
            () if self.encryption != 0 => "it is encrypted".to_owned(),
            () if unknown & 2 != 0 => "it is marked as corrupt (`qemu-img check` has details)".to_owned(),
            () if unknown & 4 != 0 => "its data are in another file".to_owned(),
            () if unknown & 16 != 0 => "it has subclusters (extended_l2)".to_owned(),
            () if unknown != 0 => format!("it has features that are not known here ({unknown:#x})"),
            () if self.compression > 1 => format!("it is compressed by method {}", self.compression),
            () => return Ok(()),
        };
        Err(what)
    }

    /// The name of the backing file's format, where it is given.
    pub(in crate::qemu) fn backing_format(&self, source: &dyn Source) -> Result<Option<Vec<u8>>, String> {
        let mut at = u64::from(self.length_bytes);
        for _ in 0..EXTENSIONS_MAX {
            let head = read(source, at, 8)?;
            let (Some(kind), Some(length)) = (be32(&head, 0), be32(&head, 4)) else { break };
            match kind {
                0 => break,
                BACKING_FORMAT if length <= 16 => return read(source, at + 8, length as usize).map(Some),
                _ => at += 8 + u64::from(length).next_multiple_of(8),
            }
            if at > 1 << self.cluster_bits {
                break;
            }
        }
        Ok(None)
    }

    /// The name of the backing file, where there is one.
    pub(in crate::qemu) fn backing_file(&self, source: &dyn Source) -> std::io::Result<Option<Vec<u8>>> {
        let (offset, length) = self.backing;
        if offset == 0 || length > 1023 {
            return Ok(None);
        }
        let mut name = vec![0; length as usize];
        source.read_at(&mut name, offset)?;
        Ok(Some(name))
    }
}

/// The differences between the headers of the files made here.
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
            let expected = Header {
                version: 3, cluster_bits: 16, virtual_size_bytes: size, encryption: 0, l1_entries: 1, l1_offset: 0,
                snapshots, snapshots_offset: offset, backing: name, incompatible: 0, length_bytes: 104, compression: 0,
            };
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
