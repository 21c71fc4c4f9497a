//! Whoever reads what we print may go, as `head` does when it has enough.

use std::panic::{self, PanicHookInfo};

/// From now on the process ends quietly when nobody reads its output any more, where printing would panic.
pub(crate) fn end_when_nobody_reads() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if nobody_reads(panic) {
            // As a shell shows a process that the signal for a broken pipe has ended.
            std::process::exit(128 + 13);
        }
        usual(panic);
    }));
}

fn nobody_reads(panic: &PanicHookInfo<'_>) -> bool {
    let said = panic.payload_as_str().unwrap_or_default();
    said.starts_with("failed printing to std") && said.contains("Broken pipe")
}
