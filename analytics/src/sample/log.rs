use super::grid::Grid;

/// A line of the guest's kernel log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// Its number in the log.
    pub sequence: u64,
    /// The facility that wrote it: 0 is the kernel, others are processes.
    pub facility: u64,
    /// Its syslog level: 0 emergency to 7 debug.
    pub level: u64,
    /// Its text, from the guest: untrusted.
    pub text: String,
}

/// The stored part of a guest's kernel log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// The newest line's number; `None` for an empty or unread log.
    pub newest: Option<u64>,
    /// The newest lines, oldest first; at most [`Log::LINES_MAX`].
    pub lines: Vec<LogLine>,
}

impl Log {
    /// Bound on the lines of one checkpoint.
    pub const LINES_MAX: usize = 128;
    /// Lines of this syslog level and below are errors.
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

    /// The stored lines that were written after an earlier checkpoint.
    pub fn since<'a>(&'a self, earlier: &Self) -> impl Iterator<Item = &'a LogLine> {
        let seen = earlier.newest;
        self.lines.iter().filter(move |line| seen.is_none_or(|seen| line.sequence > seen))
    }

    /// Number of lines written after an earlier checkpoint, stored or not.
    #[must_use]
    pub fn lines_since(&self, earlier: &Self) -> u64 {
        match (self.newest, earlier.newest) {
            (Some(now), Some(then)) => now.saturating_sub(then),
            (Some(_), None) => self.lines.len() as u64,
            _ => 0,
        }
    }
}
