//! The contents of a disk in a qcow2 file, now or at one of its snapshots.

use super::cluster::{Cluster, Tables};
use super::compressed::decompress;
use super::header::Header;
use super::snapshot::Snapshot;
use super::source::{Source, read};

/// Smallest clusters that are read, log2: those of a block.
const CLUSTER_BITS_MIN: u32 = 12;

/// A disk, or a snapshot of it, in a file, without its backing file.
pub(in crate::qemu) struct Disk<S> {
    source: S,
    header: Header,
    tables: Tables,
    /// The most recently used table of the second level.
    last: Option<(usize, Option<Vec<Cluster>>)>,
}

/// A cluster that may differ between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qemu) struct Change {
    /// Its number in the disk.
    pub(in crate::qemu) cluster: u64,
    new: Cluster,
    old: Cluster,
}

/// The place of a cluster's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qemu) enum Place {
    Backing,
    Zero,
    Data(DataPlace),
}

/// The place of data in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qemu) struct DataPlace(Cluster);

/// The content of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qemu) enum Content {
    Backing,
    Zero,
    Data(Vec<u8>),
}

impl<S: Source> Disk<S> {
    /// The disk's current contents; stable only while nothing is written to it, and only as far as QEMU has flushed it.
    pub(in crate::qemu) fn now(source: S) -> Result<Self, String> {
        let header = header(&source)?;
        let tables =
            Tables::read(&source, &header, header.l1_offset, header.l1_entries, header.virtual_size_bytes)?;
        Ok(Self { source, header, tables, last: None })
    }

    /// The disk at a snapshot.
    pub(in crate::qemu) fn at(source: S, tag: &str) -> Result<Self, String> {
        let header = header(&source)?;
        let tables = snapshot_tables(&source, &header, tag)?;
        Ok(Self { source, header, tables, last: None })
    }

    pub(in crate::qemu) fn size_bytes(&self) -> u64 {
        self.header.virtual_size_bytes
    }

    pub(in crate::qemu) fn cluster_bytes(&self) -> usize {
        1 << self.header.cluster_bits
    }

    /// The content of a cluster; past the end, that of the backing file.
    pub(in crate::qemu) fn cluster(&mut self, cluster: u64) -> Result<Content, String> {
        let entries = self.cluster_bytes() as u64 / 8;
        let table = usize::try_from(cluster / entries).unwrap_or(usize::MAX);
        if self.last.as_ref().is_none_or(|(number, _)| *number != table) {
            self.last = Some((table, self.tables.table(&self.source, table)?));
        }
        let Some((_, Some(clusters))) = &self.last else { return Ok(Content::Backing) };
        // Below the clusters of a table.
        let found = clusters.get(usize::try_from(cluster % entries).unwrap_or(usize::MAX)).copied();
        self.content(found.unwrap_or(Cluster::Backing))
    }

    /// The place of a cluster's content; reads only the entry of this cluster.
    pub(in crate::qemu) fn place(&self, cluster: u64) -> Result<Place, String> {
        Ok(match self.tables.entry(&self.source, cluster)? {
            Cluster::Backing => Place::Backing,
            Cluster::Zero => Place::Zero,
            data => Place::Data(DataPlace(data)),
        })
    }

    /// Reads a part of a cluster, from `within` on.
    pub(in crate::qemu) fn read_part(
        &self,
        place: DataPlace,
        within: usize,
        into: &mut [u8],
    ) -> Result<(), String> {
        if let Cluster::At(offset) = place.0 {
            let file_bytes = self.source.length_bytes().map_err(|error| error.to_string())?;
            if offset >= file_bytes {
                return Err(past_the_end(offset));
            }
            // What is not written of the file's last cluster reads as zeros.
            let offset = offset + within as u64;
            let there = usize::try_from(file_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
            let (written, rest) = into.split_at_mut(there.min(into.len()));
            rest.fill(0);
            return self.source.read_at(written, offset).map_err(|error| error.to_string());
        }
        match self.content(place.0)? {
            Content::Data(bytes) => into.copy_from_slice(&bytes[within..within + into.len()]),
            Content::Backing | Content::Zero => into.fill(0),
        }
        Ok(())
    }

    /// Both contents of a cluster that may differ: new and old.
    pub(in crate::qemu) fn contents(&self, change: &Change) -> Result<(Content, Content), String> {
        Ok((self.content(change.new)?, self.content(change.old)?))
    }

    fn content(&self, cluster: Cluster) -> Result<Content, String> {
        let length = self.cluster_bytes();
        let data = match cluster {
            Cluster::Backing => return Ok(Content::Backing),
            Cluster::Zero => return Ok(Content::Zero),
            Cluster::At(offset) => {
                let file_bytes = self.source.length_bytes().map_err(|error| error.to_string())?;
                if offset >= file_bytes {
                    return Err(past_the_end(offset));
                }
                // The file's last cluster may not be written to its end, which then reads as zeros.
                let there = usize::try_from(file_bytes - offset).unwrap_or(usize::MAX).min(length);
                let mut bytes = read(&self.source, offset, there)?;
                bytes.resize(length, 0);
                bytes
            }
            Cluster::Compressed { offset, length_bytes } => {
                let file_bytes = self.source.length_bytes().map_err(|error| error.to_string())?;
                let there = file_bytes.saturating_sub(offset).min(length_bytes);
                // At most twice a cluster.
                let bytes = read(&self.source, offset, usize::try_from(there).unwrap_or(usize::MAX))?;
                decompress(self.header.compression, &bytes, length)?
            }
        };
        Ok(Content::Data(data))
    }

    /// The clusters that may differ from another snapshot of the same file, or, without one, from the backing file.
    pub(in crate::qemu) fn differences(self, since: Option<&str>) -> Result<Differences<S>, String> {
        let old = match since {
            Some(tag) => Some(snapshot_tables(&self.source, &self.header, tag)?),
            None => None,
        };
        Ok(Differences { disk: self, old, table: 0, found: Vec::new().into_iter() })
    }
}

/// Clusters that may differ between two snapshots of a file, ascending.
pub(in crate::qemu) struct Differences<S> {
    pub(in crate::qemu) disk: Disk<S>,
    old: Option<Tables>,
    table: usize,
    found: std::vec::IntoIter<Change>,
}

impl<S: Source> Differences<S> {
    /// The next one. As long as both snapshots exist, none of their clusters is written: where both refer to the same
    /// place, the content is the same.
    pub(in crate::qemu) fn next(&mut self) -> Result<Option<Change>, String> {
        loop {
            if let Some(change) = self.found.next() {
                return Ok(Some(change));
            }
            if self.table >= self.disk.tables.len() {
                return Ok(None);
            }
            self.found = self.compare(self.table)?.into_iter();
            self.table += 1;
        }
    }

    fn compare(&self, table: usize) -> Result<Vec<Change>, String> {
        let new_offset = self.disk.tables.offset(table);
        let old_offset = self.old.as_ref().map_or(0, |old| old.offset(table));
        if new_offset == old_offset {
            return Ok(Vec::new());
        }
        let entries = self.disk.cluster_bytes() / 8;
        let backing = || vec![Cluster::Backing; entries];
        let new = self.disk.tables.table(&self.disk.source, table)?.unwrap_or_else(backing);
        let old = match &self.old {
            Some(old) => old.table(&self.disk.source, table)?.unwrap_or_else(backing),
            None => backing(),
        };
        let first = (table * entries) as u64;
        let end = self.disk.header.virtual_size_bytes.div_ceil(self.disk.cluster_bytes() as u64);
        let both = new.into_iter().zip(old).zip(first..end);
        let differing = both.filter(|((new, old), _)| new != old);
        Ok(differing.map(|((new, old), cluster)| Change { cluster, new, old }).collect())
    }
}

fn past_the_end(offset: u64) -> String {
    format!("a cluster at {offset}, where the file has ended")
}

fn header(source: &dyn Source) -> Result<Header, String> {
    let header = Header::of(source).map_err(|error| error.to_string())?;
    let header = header.ok_or("it is not a qcow2 file")?;
    header.refuse()?;
    if header.cluster_bits < CLUSTER_BITS_MIN {
        return Err(format!(
            "its clusters have {} bytes, less than a block of 4096",
            1 << header.cluster_bits
        ));
    }
    Ok(header)
}

fn snapshot_tables(source: &dyn Source, header: &Header, tag: &str) -> Result<Tables, String> {
    let snapshot = Snapshot::find(source, header, tag)?;
    if let Some(size_bytes) = snapshot.size_bytes.filter(|size| *size != header.virtual_size_bytes) {
        return Err(format!(
            "the disk had {size_bytes} bytes at snapshot {tag} and has {} now",
            header.virtual_size_bytes
        ));
    }
    Tables::read(source, header, snapshot.l1_offset, snapshot.l1_entries, header.virtual_size_bytes)
}
