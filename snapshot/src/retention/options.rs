use serde::{Deserialize, Serialize};

/// How a compaction is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompactOptions {
    /// Packs of which at least this many percent are garbage are rewritten. Each byte that stays in such a pack is read
    /// and written once: at 20 percent, four bytes for each one that is freed.
    pub garbage_percent_min: u64,
    /// The catalogue is rewritten when at least this many percent of it are free.
    pub vacuum_percent_min: u64,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { garbage_percent_min: 20, vacuum_percent_min: 25 }
    }
}
