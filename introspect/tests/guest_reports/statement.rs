use std::collections::BTreeMap;

/// A guest's report: the contents of files, the targets of links.
pub(crate) struct Statement {
    files: BTreeMap<String, Vec<u8>>,
}

impl Statement {
    /// Parses what the witness wrote: for each item a line `name length`, then its bytes and a newline.
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut files = BTreeMap::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&bytes[..end]).unwrap();
            let (name, length) = line.rsplit_once(' ').unwrap();
            let length: usize = length.parse().unwrap();
            files.insert(name.to_owned(), bytes[end + 1..end + 1 + length].to_vec());
            bytes = &bytes[end + 2 + length..];
        }
        Self { files }
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// A file as text; empty when the kernel does not have it.
    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.bytes(name).unwrap_or_default()).into_owned()
    }

    /// The `Name:` lines of a status file.
    pub(crate) fn status(&self, name: &str) -> BTreeMap<String, String> {
        let text = self.text(name);
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
    }

    /// The items whose names begin with `prefix`.
    pub(crate) fn under<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s [u8])> {
        self.files
            .iter()
            .filter_map(move |(name, bytes)| Some((name.strip_prefix(prefix)?, bytes.as_slice())))
    }

    /// Every thread: process id, thread id.
    pub(crate) fn threads(&self) -> Vec<(i32, i32)> {
        let of = |name: &str| {
            let (process, rest) = name.split_once('/')?;
            let thread = rest.strip_prefix("task/")?.strip_suffix("/stat")?;
            Some((process.parse().ok()?, thread.parse().ok()?))
        };
        self.under("/proc/").filter_map(|(name, _)| of(name)).collect()
    }

    /// How often a process's threads were switched to and from.
    pub(crate) fn switches(&self, process: i32) -> u64 {
        let count = |thread: i32| {
            let status = self.status(&format!("/proc/{process}/task/{thread}/status"));
            ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
                .iter()
                .map(|name| status[*name].parse::<u64>().unwrap())
                .sum::<u64>()
        };
        self.threads().iter().filter(|(of, _)| *of == process).map(|(_, thread)| count(*thread)).sum()
    }
}
