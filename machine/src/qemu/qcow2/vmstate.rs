//! Device state in QEMU's qcow2 format: an internal snapshot whose data are past the disk's end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::cluster::{COMPRESSED, COPIED, OFFSET_MASK, ZERO};
use super::header::{CLUSTER, HEADER_BYTES, Header, L2_ENTRIES, NewHeader, be64, refcounts};
use super::snapshot::Snapshot;
use super::source::read;

/// Bound on accepted device state, 512 MiB: what one L2 table covers. QEMU's is below a megabyte; a display card's
/// memory adds to it.
pub(in crate::qemu) const STATE_BYTES_MAX: usize = CLUSTER * L2_ENTRIES;

/// An empty file with a disk of one cluster, for QEMU to save device state into.
pub(in crate::qemu) fn empty() -> Vec<u8> {
    let mut out = NewHeader {
        virtual_size_bytes: CLUSTER as u64,
        l1_entries: 1,
        l1_offset: 3 * CLUSTER as u64,
        snapshots: 0,
        snapshots_offset: 0,
        backing: (0, 0),
    }
    .bytes();
    out.resize(CLUSTER, 0);
    out.extend(refcounts(4));
    out.resize(4 * CLUSTER, 0);
    out
}

/// A file with one internal snapshot named `tag` that holds `state`, for QEMU to load.
///
/// Clusters: header, refcount table, refcount block, L1 of the disk, snapshot table, L1 of the snapshot,
/// its L2 table, the state. The disk is one cluster, which its first L1 entry covers: the state begins at the second.
/// `None` when there are more than [`STATE_BYTES_MAX`] bytes of state, or the tag is not short.
pub(in crate::qemu) fn with_snapshot(tag: &str, state: &[u8]) -> Option<Vec<u8>> {
    let data_clusters = state.len().div_ceil(CLUSTER);
    let first_data = 7;
    let clusters = first_data + data_clusters;
    if state.len() > STATE_BYTES_MAX {
        return None;
    }
    let tag_bytes = u16::try_from(tag.len()).ok().filter(|length| *length < 256)?;
    let header = NewHeader {
        virtual_size_bytes: CLUSTER as u64,
        l1_entries: 1,
        l1_offset: 3 * CLUSTER as u64,
        snapshots: 1,
        snapshots_offset: 4 * CLUSTER as u64,
        backing: (0, 0),
    };
    let mut out = Vec::with_capacity(clusters * CLUSTER);
    out.extend(header.bytes());
    out.resize(CLUSTER, 0);
    out.extend(refcounts(clusters));
    out.resize(4 * CLUSTER, 0);

    out.extend((5 * CLUSTER as u64).to_be_bytes());
    out.extend(2_u32.to_be_bytes());
    out.extend(1_u16.to_be_bytes()); // length of the id
    out.extend(tag_bytes.to_be_bytes());
    out.extend([0; 4 + 4 + 8 + 4]); // date, guest clock, and the short form of the size below
    out.extend(16_u32.to_be_bytes());
    out.extend((state.len() as u64).to_be_bytes());
    out.extend((CLUSTER as u64).to_be_bytes());
    out.push(b'1');
    out.extend(tag.as_bytes());
    out.resize(5 * CLUSTER, 0);

    out.extend(0_u64.to_be_bytes());
    out.extend(((6 * CLUSTER) as u64 | COPIED).to_be_bytes());
    out.resize(6 * CLUSTER, 0);
    for cluster in first_data..clusters {
        out.extend(((cluster * CLUSTER) as u64 | COPIED).to_be_bytes());
    }
    out.resize(first_data * CLUSTER, 0);
    out.extend(state);
    out.resize(clusters * CLUSTER, 0);
    debug_assert!(out.len() >= HEADER_BYTES);
    Some(out)
}

/// The device state of the snapshot named `tag`, or why it cannot be read.
pub(in crate::qemu) fn extract(file: &File, tag: &str) -> Result<Vec<u8>, String> {
    let header = Header::read(file).map_err(|error| error.to_string())?.ok_or("this is not a qcow2 file")?;
    let snapshot = Snapshot::find(file, &header, tag)?;
    let length = usize::try_from(snapshot.state_bytes)
        .ok()
        .filter(|length| *length <= STATE_BYTES_MAX)
        .ok_or_else(|| format!("{} bytes of device state are too many", snapshot.state_bytes))?;
    let cluster = 1_usize << header.cluster_bits;
    let entries = cluster / 8;
    // The state begins with the first L1 entry past the disk.
    let first = header.virtual_size_bytes.div_ceil((cluster as u64) * entries as u64);
    let mut state = vec![0; length];
    let mut table = Vec::new();
    for (at, part) in state.chunks_mut(cluster).enumerate() {
        if at % entries == 0 {
            let index = first + (at / entries) as u64;
            if index >= u64::from(snapshot.l1_entries) {
                return Err("the snapshot's table is shorter than its state".into());
            }
            let offset = snapshot.l1_offset.checked_add(index * 8).ok_or("a table past all files")?;
            let entry = be64(&read(file, offset, 8)?, 0).unwrap_or_default();
            table = match entry & OFFSET_MASK {
                0 => vec![0; cluster],
                offset => read(file, offset, cluster)?,
            };
        }
        let entry = be64(&table, at % entries * 8).unwrap_or_default();
        if entry & COMPRESSED != 0 {
            // QEMU never does that.
            return Err("device state in a compressed cluster".into());
        }
        let offset = entry & OFFSET_MASK;
        if offset != 0 && entry & ZERO == 0 {
            file.read_exact_at(part, offset).map_err(|error| error.to_string())?;
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// `qemu-img check` and `info` on the bytes, when it is there.
    fn check(bytes: &[u8]) -> Option<String> {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(bytes).unwrap();
        let run =
            |verb| std::process::Command::new("qemu-img").arg(verb).arg("-fqcow2").arg(named.path()).output();
        let Ok(checked) = run("check") else {
            eprintln!("SKIPPED: qemu-img (package qemu-utils) is not installed");
            return None;
        };
        assert!(checked.status.success(), "{checked:?}");
        assert!(String::from_utf8_lossy(&checked.stdout).contains("No errors"), "{checked:?}");
        Some(String::from_utf8(run("info").unwrap().stdout).unwrap())
    }

    #[test]
    fn qemu_img_finds_no_fault() {
        check(&empty());
        let large: Vec<u8> = (0..CLUSTER * 99 / 8 + 5).flat_map(|word| (word as u64).to_le_bytes()).collect();
        for state in [&b"QEVM"[..], &large] {
            if let Some(info) = check(&with_snapshot("tag1", state).unwrap()) {
                assert!(info.contains("tag1"), "{info}");
            }
        }
        let read = extract(&file(&with_snapshot("tag1", &large).unwrap()), "tag1").unwrap();
        assert!(read == large);
    }

    #[test]
    fn other_tags_and_other_files_are_refused() {
        let bytes = with_snapshot("a", b"state").unwrap();
        assert!(extract(&file(&bytes), "b").unwrap_err().contains("no snapshot b"));
        assert!(extract(&file(&empty()), "a").is_err());
        assert!(extract(&file(b"raw"), "a").is_err());
        assert!(with_snapshot(&"t".repeat(300), b"").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_state_is_read_back(state in prop::collection::vec(any::<u8>(), 0..3 * CLUSTER), tag in "[a-z0-9-]{1,20}") {
            let bytes = with_snapshot(&tag, &state).unwrap();
            prop_assert!(extract(&file(&bytes), &tag).unwrap() == state);
        }

        #[test]
        fn a_damaged_file_is_read_or_refused(damage in prop::collection::vec((0_usize..8 * CLUSTER, any::<u8>()), 1..20), table in prop::collection::vec((0_usize..120, any::<u8>()), 0..9)) {
            let mut bytes = with_snapshot("a", &[7; 100]).unwrap();
            for (at, byte) in damage { bytes[at % 104] ^= byte & 1; if let Some(place) = bytes.get_mut(at) { *place = byte; } }
            for (at, byte) in table { bytes[4 * CLUSTER + at] = byte; }
            let _ = extract(&file(&bytes), "a");
        }
    }
}
