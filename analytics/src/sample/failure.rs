//! A kernel that failed: panics and oopses, from its own state and its log.

use super::grid::Row;
use super::{Log, Violation};

/// Beginnings of lines with which the kernel reports an error of its own that it survived, or did not.
const OOPS: [&str; 5] = ["BUG: ", "Oops: ", "kernel BUG at ", "general protection fault", "invalid opcode: "];
const PANIC: &str = "Kernel panic - not syncing";

fn violation(kind: &str, object: String, detail: Option<String>) -> Violation {
    Violation { kind: kind.to_owned(), object, symbol: None, detail, expected: None, found: None }
}

/// A panic or oopses that the kernel's own variables show.
pub(super) fn of_kernel(row: Row<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    if row.text("state").as_deref() == Some("panic") {
        let cpu = row.count("panic_cpu").map_or_else(String::new, |cpu| format!(" on CPU {cpu}"));
        found.push(violation("kernel_panic", format!("the guest's kernel has stopped{cpu}"), None));
    }
    if let Some(count) = row.count("oopses").filter(|count| *count > 0) {
        found.push(violation("kernel_oops", format!("{count} since boot"), None));
    }
    found
}

/// A panic or an oops that the kernel reported in its log.
pub(super) fn of_log(log: &Log) -> Option<Violation> {
    // Processes can write to the log, but not as the kernel.
    let mut lines = log.lines.iter().filter(|line| line.facility == 0);
    let reported = |kind: &str, text: &str| {
        Some(violation(kind, "reported in the kernel log".to_owned(), Some(text.to_owned())))
    };
    if let Some(panic) = lines.clone().find(|line| line.text.starts_with(PANIC)) {
        return reported("kernel_panic", &panic.text);
    }
    let oops = lines.find(|line| {
        // A lockup is reported on a busy host, too.
        let is_lockup = line.text.contains("lockup");
        line.level <= Log::ERROR_LEVEL && !is_lockup && OOPS.iter().any(|oops| line.text.starts_with(oops))
    })?;
    reported("kernel_oops", &oops.text)
}
