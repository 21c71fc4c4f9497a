/// Limits and thresholds of a recorder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecorderSettings {
    /// Bytes of copied pages that wait to be stored, at most. When they are used up, the next capture waits before it
    /// pauses the guest: a slow disk lengthens the interval between checkpoints, never the pause. A pause that needs
    /// more than expected allocates beyond this.
    pub staging_bytes_max: u64,
    /// If at least this many pages are dirty before the pause, they are copied while the guest runs, and the pause
    /// copies only what was written meanwhile. 0: always; `u64::MAX`: never. Below it, finding the dirty pages twice
    /// costs more than it saves.
    pub precopy_pages_min: u64,
    /// Rounds of copying before the pause, at most. They end earlier when few pages are left, or hardly fewer than in
    /// the round before.
    pub precopy_rounds_max: u32,
    /// Checkpoints that are made durable together, at most.
    pub group_checkpoints_max: usize,
    /// Captures that wait to be durable, at most. The next one waits before it pauses the guest.
    pub pending_checkpoints_max: usize,
    /// The driver retains the disk contents of this many checkpoints, so that rollbacks to them are quick; those of
    /// older ones are restored block by block. Contents that are not stored yet are retained in addition.
    pub retained_disk_states_max: usize,
    /// Frames that were not reported as dirty and are compared with the catalogue at each checkpoint, at most 4,096.
    /// 0: none. See `docs/audit.md`.
    pub audit_frames: u64,
    /// Blocks with data of each disk that are compared with the catalogue at each checkpoint, at most 240. 0: none.
    pub audit_blocks: u64,
}

impl Default for RecorderSettings {
    fn default() -> Self {
        Self {
            staging_bytes_max: 256 << 20,
            precopy_pages_min: 2048,
            precopy_rounds_max: 6,
            group_checkpoints_max: 64,
            pending_checkpoints_max: 256,
            retained_disk_states_max: 64,
            audit_frames: 64,
            audit_blocks: 64,
        }
    }
}

/// Memory that a recorder and its store use for pages, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Copied pages that wait to be stored.
    pub staging_bytes: u64,
    /// The most of them there ever were.
    pub staging_bytes_peak: u64,
    /// The most there may be.
    pub staging_bytes_max: u64,
    /// Pages kept for quick rollbacks.
    pub page_cache_bytes: u64,
    /// The most there may be.
    pub page_cache_bytes_max: u64,
}
