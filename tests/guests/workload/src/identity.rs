//! Answers of the kernel that never change while the workload runs.

use std::time::Instant;

use crate::complaints::Complaints;

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// What the kernel said when the workload started.
pub(crate) struct Identity {
    process: u32,
    parent: u32,
    release: String,
    latest: Instant,
}

impl Identity {
    /// Asks for the first time.
    pub(crate) fn now() -> Self {
        Self {
            process: std::process::id(),
            parent: std::os::unix::process::parent_id(),
            release: release(),
            latest: Instant::now(),
        }
    }

    /// Asks again.
    pub(crate) fn check(&mut self, complaints: &mut Complaints) {
        complaints.unless_equal("getpid", &self.process, &std::process::id());
        complaints.unless_equal("getppid", &self.parent, &std::os::unix::process::parent_id());
        complaints.unless_equal("kernel release", &self.release, &release());
        let now = Instant::now();
        if now < self.latest {
            complaints.add(
                "monotonic clock",
                "no step back",
                format_args!("{} us back", (self.latest - now).as_micros()),
            );
        }
        self.latest = now;
    }
}

fn release() -> String {
    std::fs::read_to_string(RELEASE).map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_answer_is_noticed() {
        let mut complaints = Complaints::default();
        let mut identity = Identity::now();
        identity.check(&mut complaints);
        assert_eq!(complaints.count(), 0);
        identity.parent += 1;
        identity.check(&mut complaints);
        assert_eq!(complaints.count(), 1);
    }
}
