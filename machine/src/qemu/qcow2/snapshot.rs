use super::header::{Header, be16, be32, be64};
use super::source::{Source, read};

/// Bound on the internal snapshots that are read.
const SNAPSHOTS_MAX: u32 = 65_536;

/// One entry of the snapshot table.
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
    pub(super) state_bytes: u64,
    /// The disk's size at that time, if it is recorded.
    pub(super) size_bytes: Option<u64>,
}

impl Snapshot {
    /// The snapshot with a name.
    pub(super) fn find(source: &dyn Source, header: &Header, tag: &str) -> Result<Self, String> {
        let mut at = header.snapshots_offset;
        for _ in 0..header.snapshots.min(SNAPSHOTS_MAX) {
            let fixed = read(source, at, 40)?;
            let short = || "a snapshot's entry is cut off".to_owned();
            let id_bytes = u64::from(be16(&fixed, 12).ok_or_else(short)?);
            let name_bytes = be16(&fixed, 14).ok_or_else(short)?;
            let extra_bytes = be32(&fixed, 36).ok_or_else(short)?;
            if extra_bytes > 1024 {
                return Err("a snapshot's entry is too long".into());
            }
            let extra = read(source, at + 40, extra_bytes as usize)?;
            let name_at = at + 40 + u64::from(extra_bytes) + id_bytes;
            if read(source, name_at, name_bytes.into())? == tag.as_bytes() {
                return Ok(Self {
                    l1_offset: be64(&fixed, 0).ok_or_else(short)?,
                    l1_entries: be32(&fixed, 8).ok_or_else(short)?,
                    state_bytes: be64(&extra, 0).or(be32(&fixed, 32).map(u64::from)).ok_or_else(short)?,
                    size_bytes: be64(&extra, 8),
                });
            }
            at = (name_at + u64::from(name_bytes)).next_multiple_of(8);
        }
        Err(format!("there is no snapshot {tag}"))
    }
}
