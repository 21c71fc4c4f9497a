use super::grid::Row;

/// One thread of the guest in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Thread id.
    pub pid: i64,
    /// Thread group (process) id.
    pub tgid: i64,
    /// Process id of the parent.
    pub ppid: i64,
    /// Its name, set by the guest: untrusted text.
    pub comm: String,
    /// Its parent's name, where known.
    pub parent_comm: Option<String>,
    /// First letter of its state: `R` runs, `S` sleeps, `D` waits, `Z` is dead.
    pub state: char,
    /// When it started, in nanoseconds of guest uptime.
    pub start_time_ns: u64,
    /// Processor time it has used, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory of its process, in pages.
    pub rss_pages: u64,
    /// Whether it is a kernel thread.
    pub kernel_thread: bool,
}

impl Task {
    pub(super) fn read(row: Row<'_>) -> Option<Self> {
        let pid = row.number("pid").and_then(whole)?;
        let kernel_thread = row.flag("kernel_thread");
        Some(Self {
            pid,
            tgid: row.number("tgid").and_then(whole).unwrap_or(pid),
            ppid: row.number("ppid").and_then(whole).unwrap_or(0),
            comm: row.text("comm").unwrap_or_default(),
            parent_comm: row.text("parent_comm"),
            state: row
                .text("state")
                .and_then(|text| text.chars().next())
                .map_or('?', |c| c.to_ascii_uppercase()),
            start_time_ns: row.count("start_time_ns").unwrap_or(0),
            cpu_ns: row.count("utime_ns").unwrap_or(0).saturating_add(row.count("stime_ns").unwrap_or(0)),
            rss_pages: row.count("rss_pages").unwrap_or(0),
            kernel_thread,
        })
    }

    /// Whether this row represents the whole process (memory is counted there once).
    #[must_use]
    pub fn leads(&self) -> bool {
        self.pid == self.tgid
    }

    /// Distinguishes two tasks with the same pid at different times.
    pub(crate) fn identity(&self) -> (i64, u64) {
        (self.pid, self.start_time_ns)
    }

    /// The name under which similar tasks are counted: `kworker/0:1-events` is `[kworker]`.
    #[must_use]
    pub fn family(&self) -> String {
        family(&self.comm, self.kernel_thread)
    }
}

/// See [`Task::family`].
pub(crate) fn family(comm: &str, kernel_thread: bool) -> String {
    if !kernel_thread {
        return comm.to_owned();
    }
    let stem = comm.split(['/', ':', '-']).next().unwrap_or(comm);
    format!("[{stem}]")
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
fn whole(number: f64) -> Option<i64> {
    (number.abs() < 9e15).then_some(number as i64)
}
