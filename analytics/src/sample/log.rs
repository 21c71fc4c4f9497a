use super::grid::Grid;

/// A line of the guest's kernel log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// Its number in the log.
    pub sequence: u64,
    /// Who wrote it: 0 the kernel, others processes.
    pub facility: u64,
    /// Its syslog level: 0 emergency to 7 debug.
    pub level: u64,
    /// Its text: hostile.
    pub text: String,
}

/// What is kept of a guest's kernel log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// The newest line's number; `None` for an empty or unread log.
    pub newest: Option<u64>,
    /// The newest lines, oldest first; at most [`Log::LINES_MAX`].
    pub lines: Vec<LogLine>,
}

impl Log {
    /// Lines kept of one checkpoint.
    pub const LINES_MAX: usize = 128;
    /// Syslog level from which on (downwards) a line is an error.
    pub const ERROR_LEVEL: u64 = 3;

    pub(super) fn read(grid: &Grid<'_>) -> Self {
        let mut lines: Vec<LogLine> = grid
            .rows(usize::MAX)
            .filter_map(|row| {
                Some(LogLine {
                    sequence: row.count("sequence")?,
                    facility: row.count("facility").unwrap_or(0),
                    level: row.count("level").unwrap_or(6) & 7,
                    text: row.text("text").unwrap_or_default(),
                })
            })
            .collect();
        lines.sort_by_key(|line| line.sequence);
        lines.dedup_by_key(|line| line.sequence);
        let newest = lines.last().map(|line| line.sequence);
        let excess = lines.len().saturating_sub(Self::LINES_MAX);
        lines.drain(..excess);
        Self { newest, lines }
    }

    /// The lines written since an earlier checkpoint, as far as they were kept.
    pub fn since<'a>(&'a self, earlier: &Self) -> impl Iterator<Item = &'a LogLine> {
        let seen = earlier.newest;
        self.lines.iter().filter(move |line| seen.is_none_or(|seen| line.sequence > seen))
    }

    /// Number of lines written since an earlier checkpoint, kept or not.
    #[must_use]
    pub fn lines_since(&self, earlier: &Self) -> u64 {
        match (self.newest, earlier.newest) {
            (Some(now), Some(then)) => now.saturating_sub(then),
            (Some(_), None) => self.lines.len() as u64,
            _ => 0,
        }
    }
}
