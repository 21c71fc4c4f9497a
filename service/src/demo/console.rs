//! What the guest's workload wrote to its console.

use std::path::PathBuf;

/// A console's log file.
pub(super) struct Console {
    log: PathBuf,
}

impl Console {
    pub(super) fn new(log: PathBuf) -> Self {
        Self { log }
    }

    /// Bytes written so far: a mark for later.
    pub(super) fn mark(&self) -> usize {
        std::fs::metadata(&self.log).map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(usize::MAX))
    }

    /// Complete lines since a mark.
    pub(super) fn lines_since(&self, mark: usize) -> Vec<String> {
        // A log that is not there yet has no lines.
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes.get(mark..).unwrap_or_default()).into_owned();
        let Some(end) = text.rfind('\n') else { return Vec::new() };
        text[..end].lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
    }

    /// The newest tick reported since a mark.
    pub(super) fn last_tick(&self, mark: usize) -> Option<u64> {
        self.lines_since(mark).iter().rev().find_map(|line| tick(line))
    }

    /// The first tick line since a mark.
    pub(super) fn first_tick_line(&self, mark: usize) -> Option<(u64, String)> {
        // The line that was being written when the guest was rolled back is not complete.
        self.lines_since(mark).into_iter().find_map(|line| tick(&line).map(|tick| (tick, line)))
    }

    /// Lines in which the workload reports that its memory or disk is corrupt.
    pub(super) fn complaints(&self) -> Vec<String> {
        self.lines_since(0).into_iter().filter(|line| line.contains("CORRUPT")).collect()
    }
}

/// The counter of a line such as `tick 00042 mem 1a2b3c4d file 5e6f7a8b ok`.
fn tick(line: &str) -> Option<u64> {
    let mut words = line.strip_prefix("tick ")?.split(' ');
    let tick = words.next()?.parse().ok()?;
    (words.count() == 5).then_some(tick)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_tick_lines_count() {
        assert_eq!(tick("tick 00042 mem 1a2b3c4d file 5e6f7a8b ok"), Some(42));
        assert_eq!(tick("tick 00042 mem 1a2b"), None);
        assert_eq!(tick("tick 000tick 00042 mem 1a2b3c4d file 5e6f7a8b ok"), None);
    }

    #[test]
    fn lines_are_read_from_a_mark_on() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(dir.path().join("log"));
        assert_eq!(console.lines_since(0), Vec::<String>::new());
        std::fs::write(dir.path().join("log"), "tick 1 mem 0 file 0 ok\r\nCORRUPT x\ntick 2 me").unwrap();
        assert_eq!(console.last_tick(0), Some(1));
        assert_eq!(console.complaints(), ["CORRUPT x"]);
        assert_eq!(console.lines_since(24), ["CORRUPT x"]);
    }
}
