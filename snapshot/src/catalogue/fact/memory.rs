use std::collections::HashMap;
use std::sync::Arc;

use super::layout::Layout;
use super::series::Tip;
use crate::id::CheckpointId;

/// Bound on the rows of the series that are kept in memory, of all machines together; a row takes about 100 bytes.
const TIP_ROWS_MAX: usize = 250_000;
/// Most machines whose series are kept in memory.
const TIPS_MAX: usize = 64;

/// What recording facts keeps in memory between checkpoints.
#[derive(Default)]
pub(in crate::catalogue) struct FactMemory {
    /// Kinds known to have all their columns, by name and number of columns.
    pub(super) layouts: HashMap<(&'static str, usize), Arc<Layout>>,
    /// The newest series of machines, the one used last at the end.
    tips: Vec<Tip>,
}

impl FactMemory {
    pub(super) fn take(&mut self, machine: i64) -> Option<Tip> {
        let at = self.tips.iter().position(|tip| tip.machine == machine)?;
        Some(self.tips.remove(at))
    }

    pub(super) fn put(&mut self, tip: Tip) {
        self.tips.push(tip);
        while self.tips.len() > TIPS_MAX || self.tips.iter().map(Tip::rows).sum::<usize>() > TIP_ROWS_MAX {
            self.tips.remove(0);
        }
    }

    /// Checkpoints are removed: series that end with one of them are read again.
    pub(in crate::catalogue) fn forget(&mut self, checkpoints: &[CheckpointId]) {
        self.tips.retain(|tip| !checkpoints.contains(&CheckpointId(tip.checkpoint)));
    }
}
