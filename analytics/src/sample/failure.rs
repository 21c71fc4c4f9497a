//! Failures of the guest's kernel: panics and oopses, from its variables and its log.

use super::grid::Row;
use super::{Log, Violation};

/// Beginnings of the lines with which the kernel reports an oops.
const OOPS: [&str; 5] = ["BUG: ", "Oops: ", "kernel BUG at ", "general protection fault", "invalid opcode: "];
const PANIC: &str = "Kernel panic - not syncing";

fn violation(kind: &str, object: String, detail: Option<String>) -> Violation {
    Violation { kind: kind.to_owned(), object, symbol: None, detail, expected: None, found: None }
}

/// A panic or oopses according to the kernel's variables.
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

/// A panic or an oops according to the kernel's log.
pub(super) fn of_log(log: &Log) -> Option<Violation> {
    // Processes can write to the log, but not with the kernel's facility.
    let mut lines = log.lines.iter().filter(|line| line.facility == 0);
    let reported = |kind: &str, text: &str| {
        Some(violation(kind, "reported in the kernel log".to_owned(), Some(text.to_owned())))
    };
    if let Some(panic) = lines.clone().find(|line| line.text.starts_with(PANIC)) {
        return reported("kernel_panic", &panic.text);
    }
    let oops = lines.find(|line| {
        // A busy host causes reports of lockups, too.
        let is_lockup = line.text.contains("lockup");
        line.level <= Log::ERROR_LEVEL && !is_lockup && OOPS.iter().any(|oops| line.text.starts_with(oops))
    })?;
    reported("kernel_oops", &oops.text)
}
