//! Migrations that another client of QEMU runs: `virsh save`, `virsh dump`, a move to another host.
//!
//! The driver runs none itself. While one is in progress, QEMU can save no device state for a checkpoint, and the guest
//! must not be resumed here once it is complete.

use std::time::{Duration, Instant};

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::monitor::{Monitor, text};

/// How long QEMU may take to end a migration that was cancelled.
const CANCEL_WAIT: Duration = Duration::from_secs(5);
/// How long a migration without memory may take to the point before its end at which it waits.
const SWITCHOVER_WAIT: Duration = Duration::from_secs(2);

/// Whether a migration is in progress, according to the answer to `query-migrate`.
fn is_in_progress(migration: &Value) -> bool {
    let ended = ["none", "cancelled", "failed", "completed"];
    text(migration, "status").is_some_and(|status| !ended.contains(&status))
}

/// Refuses the pause of a checkpoint or a rollback while another client migrates the guest.
pub(super) fn refuse(monitor: &mut Monitor) -> Result<(), MachineError> {
    if is_in_progress(&monitor.execute("query-migrate", &json!({}))?) {
        return Err(MachineError::Unsupported {
            what: "pausing a guest that another program saves or migrates".into(),
            help: "Wait for its end, or cancel it (`virsh domjobabort`)".into(),
        });
    }
    Ok(())
}

/// Refuses to resume a guest that another client saved or moved away since it was paused: it continues from there, and
/// its disks must not be written here any more.
pub(super) fn refuse_resume(monitor: &mut Monitor) -> Result<(), MachineError> {
    let status = monitor.execute("query-status", &json!({}))?;
    // The second query is not needed in nearly all pauses.
    if is_elsewhere(&status, &Value::Null)
        && is_elsewhere(&status, &monitor.execute("query-migrate", &json!({}))?)
    {
        return Err(MachineError::Unsupported {
            what: "resuming a guest that another program has saved or migrated".into(),
            help: "That program ends this process, or resumes it (`virsh resume`)".into(),
        });
    }
    Ok(())
}

/// Whether the guest continues in another process. QEMU has the same state after a migration that failed.
fn is_elsewhere(status: &Value, migration: &Value) -> bool {
    let migrated = ["finish-migrate", "postmigrate", "inmigrate", "colo"];
    text(status, "status").is_some_and(|status| migrated.contains(&status))
        && !matches!(text(migration, "status"), Some("cancelled" | "failed"))
}

/// Cancels the migration in progress, if there is one, and waits for its end. It is one that waits before it completes
/// (`pause-before-switchover`).
pub(super) fn cancel(monitor: &mut Monitor) -> Result<(), MachineError> {
    let begin = Instant::now();
    let mut is_cancelled = false;
    loop {
        let migration = monitor.execute("query-migrate", &json!({}))?;
        match text(&migration, "status") {
            _ if !is_in_progress(&migration) => break,
            // QEMU's thread may have begun to wait just when it was cancelled, and then has to be woken. Otherwise this
            // is refused.
            Some("cancelling") => {
                let _ = monitor.execute("migrate-continue", &json!({ "state": "cancelling" }));
            }
            Some("pre-switchover") => {
                monitor.execute("migrate_cancel", &json!({}))?;
                is_cancelled = true;
            }
            // It will wait soon.
            _ if begin.elapsed() < SWITCHOVER_WAIT => {}
            _ => {
                monitor.execute("migrate_cancel", &json!({}))?;
                is_cancelled = true;
            }
        }
        if begin.elapsed() > CANCEL_WAIT {
            return Err(MachineError::Driver {
                doing: "cancelling a migration without the guest's memory".into(),
                message: format!("QEMU did not end it within {} s", CANCEL_WAIT.as_secs()),
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if is_cancelled {
        tracing::warn!(
            "another program began to save or migrate the guest while x-ignore-shared was on: it was cancelled, \
             because it would have lacked the guest's memory"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_that_never_was_or_ended_is_not_in_progress() {
        for status in ["none", "cancelled", "failed", "completed"] {
            assert!(!is_in_progress(&json!({ "status": status })), "{status}");
        }
        assert!(!is_in_progress(&json!({ "blocked-reasons": ["a device"] })));
        for status in ["setup", "active", "device", "pre-switchover", "cancelling", "postcopy-active"] {
            assert!(is_in_progress(&json!({ "status": status })), "{status}");
        }
    }

    #[test]
    fn a_guest_whose_migration_failed_may_be_resumed() {
        let is = |status: &str, migration: &str| {
            is_elsewhere(&json!({ "status": status }), &json!({ "status": migration }))
        };
        assert!(is("postmigrate", "completed") && is("finish-migrate", "active"));
        assert!(!is("postmigrate", "cancelled") && !is("postmigrate", "failed"));
        // Saving a state of this driver counts as a migration.
        assert!(!is("paused", "completed"));
    }
}
