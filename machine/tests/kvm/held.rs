/// The resources of this process that would grow if something were not released.
#[derive(Debug)]
pub(crate) struct Held {
    descriptors: usize,
    pub(crate) threads: usize,
    memory_kib: u64,
}

impl Held {
    pub(crate) fn now() -> Self {
        let entries = |folder| std::fs::read_dir(folder).unwrap().count();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            memory_kib: line.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }

    /// Memory may have grown by this much.
    pub(crate) fn assert_not_grown(&self, since: &Self, memory_kib: u64) {
        assert_eq!((self.descriptors, self.threads), (since.descriptors, since.threads));
        assert!(self.memory_kib < since.memory_kib + memory_kib, "{self:?} after {since:?}");
    }
}
