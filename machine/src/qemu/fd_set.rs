//! Files of this process that QEMU has open as well, in its list of descriptor sets (`add-fd`).

use std::fs::File;
use std::os::fd::AsFd;

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::monitor::{Monitor, text};

/// The text that QEMU stores with each descriptor of this driver.
const OPAQUE: &str = "retrovisor";

/// A descriptor set in QEMU with one file of this process.
#[derive(Debug)]
pub(super) struct FdSet {
    id: u64,
    /// The number of the descriptor in QEMU.
    fd: u64,
}

impl FdSet {
    /// Passes a file to QEMU.
    pub(super) fn add(monitor: &mut Monitor, file: &File) -> Result<Self, MachineError> {
        let answer = monitor.execute_with_fd("add-fd", &json!({ "opaque": OPAQUE }), file.as_fd())?;
        let number = |field| answer.get(field).and_then(Value::as_u64);
        number("fdset-id").zip(number("fd")).map(|(id, fd)| Self { id, fd }).ok_or_else(|| {
            MachineError::Driver {
                doing: "passing a file to QEMU".into(),
                message: "its answer names no set".into(),
            }
        })
    }

    /// The sets that this driver added, in this process or an earlier one, are removed.
    pub(super) fn remove_all(monitor: &mut Monitor) -> Result<(), MachineError> {
        for id in own(&monitor.execute("query-fdsets", &json!({}))?) {
            monitor.execute("remove-fd", &json!({ "fdset-id": id }))?;
        }
        Ok(())
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The path under which QEMU's block layer opens the file.
    pub(super) fn block_path(&self) -> String {
        format!("/dev/fdset/{}", self.id)
    }

    /// The path under which QEMU's process opens the file, whatever its user and its namespaces are.
    pub(super) fn process_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd)
    }
}

/// The sets of descriptors in QEMU's list that belong to this driver.
fn own(sets: &Value) -> Vec<u64> {
    let is_own = |set: &&Value| {
        let fds = set.get("fds").and_then(Value::as_array);
        fds.is_some_and(|fds| !fds.is_empty() && fds.iter().all(|fd| text(fd, "opaque") == Some(OPAQUE)))
    };
    let own = sets.as_array().into_iter().flatten().filter(is_own);
    own.filter_map(|set| set.get("fdset-id")?.as_u64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_the_owner_are_not_this_drivers() {
        let sets = json!([
            { "fdset-id": 0, "fds": [{ "fd": 17, "opaque": "serial0-source" }] },
            { "fdset-id": 1, "fds": [{ "fd": 18, "opaque": "retrovisor" }] },
            { "fdset-id": 2, "fds": [{ "fd": 19, "opaque": "retrovisor" }, { "fd": 20 }] },
            { "fdset-id": 3, "fds": [] },
        ]);
        assert_eq!(own(&sets), [1]);
    }
}
