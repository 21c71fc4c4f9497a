use std::path::PathBuf;
use std::time::Duration;

use retrovisor_guest::{DRIVER_DEFAULT, Interface, LaunchSpec, ProcessIdentity};
use serde::{Deserialize, Serialize};

use crate::error::ManagerError;
use crate::lifecycle::PausedBy;

/// The shortest interval between automatic checkpoints that is accepted from outside: a shorter one leaves the guest no time
/// to run.
pub const INTERVAL_MIN_MS: u32 = 20;

/// How a machine is found or started again: kept in the catalogue as JSON. Fields that earlier versions did not write have
/// defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Interval between automatic checkpoints; 0 for none.
    pub every_ms: u32,
    /// QMP socket, when it is not at its place in the runtime directory.
    pub qmp: Option<PathBuf>,
    /// Where it came from.
    pub origin: Origin,
    /// Whether the machine outlives the process that manages it.
    pub detached: bool,
    /// The process that it ran in last, as far as that is known.
    #[serde(default)]
    pub process: Option<ProcessIdentity>,
    /// Who paused it, while it is paused.
    #[serde(default)]
    pub paused_by: Option<PausedBy>,
    /// Whether the user ended its management while its process runs: it is not attached again by itself.
    #[serde(default)]
    pub is_released: bool,
}

impl MachineSpec {
    /// Of a machine that Retrovisor starts and that outlives the daemon.
    #[must_use]
    pub fn launched(launch: LaunchSpec, every_ms: u32) -> Self {
        Self::new(Origin::Launched(launch), every_ms, None)
    }

    /// Of a QEMU that runs already, with its QMP socket.
    #[must_use]
    pub fn attached(qmp: PathBuf, every_ms: u32) -> Self {
        Self::new(Origin::Attached, every_ms, Some(qmp))
    }

    fn new(origin: Origin, every_ms: u32, qmp: Option<PathBuf>) -> Self {
        Self { every_ms, qmp, origin, detached: true, process: None, paused_by: None, is_released: false }
    }
}

/// Where a machine came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Retrovisor started it.
    Launched(LaunchSpec),
    /// Another program started it.
    Attached,
}

impl MachineSpec {
    /// Reads back what the catalogue kept.
    pub fn from_runtime(name: &str, runtime: &str) -> Result<Self, ManagerError> {
        serde_json::from_str(runtime).map_err(|_| ManagerError::Refused {
            what: format!("{name} was imported: it can be read, and has no description of a machine to start"),
            help: format!(
                "Read it with retrovisor log {name}, inspect, diff, report. `retrovisor run` under another name starts a guest."
            ),
        })
    }

    /// What the catalogue keeps.
    pub(crate) fn to_runtime(&self) -> Result<String, ManagerError> {
        serde_json::to_string(self).map_err(|error| ManagerError::Invalid(error.to_string()))
    }

    /// The interval between automatic checkpoints, if there are any.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        (self.every_ms > 0).then(|| Duration::from_millis(self.every_ms.into()))
    }

    /// The name of its driver.
    #[must_use]
    pub fn driver(&self) -> &str {
        match &self.origin {
            Origin::Launched(spec) => &spec.driver,
            Origin::Attached => DRIVER_DEFAULT,
        }
    }

    /// What it is launched with.
    pub(crate) fn launch(&self) -> Result<&LaunchSpec, ManagerError> {
        match &self.origin {
            Origin::Launched(spec) => Ok(spec),
            Origin::Attached => Err(ManagerError::Refused {
                what: "the machine was not started by Retrovisor, which cannot start it".to_owned(),
                help: "Start its QEMU again with the same options and attach it under the same name: then it can be rolled back.".to_owned(),
            }),
        }
    }

    /// The network interfaces that it was started with, in order.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        match &self.origin {
            Origin::Launched(spec) => &spec.interfaces,
            Origin::Attached => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_of_earlier_versions_are_read() {
        let first = r#"{"every_ms":500,"qmp":null,"origin":{"launched":{"kernel":"/k","initrd":null,"append":"quiet",
            "disks":["/d.raw"],"memory_bytes":268435456,"vcpus":1,"accelerator":null}},"detached":true}"#;
        let spec = MachineSpec::from_runtime("web", first).unwrap();
        assert_eq!((spec.driver(), spec.interfaces().len(), spec.process.clone()), ("qemu", 0, None));
        let Origin::Launched(launch) = &spec.origin else { panic!("{spec:?}") };
        assert_eq!((launch.channel, launch.vcpus), (false, 1));

        let micro = r#"{"every_ms":0,"qmp":null,"origin":{"launched":{"kernel":"/k","initrd":"/i","append":"",
            "disks":[],"memory_bytes":268435456,"vcpus":2,"driver":"kvm","accelerator":null,
            "interfaces":[{"network":{"hub":"lan"},"mac":[2,0,94,16,0,1]},{"network":{"tap":"tap0"},"mac":null}],
            "channel":true}},"detached":true}"#;
        let spec = MachineSpec::from_runtime("fast", micro).unwrap();
        assert_eq!((spec.driver(), spec.interfaces().len(), spec.interval()), ("kvm", 2, None));
        assert_eq!(spec.interfaces()[0].mac.unwrap().to_string(), "02:00:5e:10:00:01");

        let attached = r#"{"every_ms":1000,"qmp":"/run/q","origin":"attached","detached":true}"#;
        let spec = MachineSpec::from_runtime("db", attached).unwrap();
        assert_eq!((spec.driver(), &spec.origin), ("qemu", &Origin::Attached));
        let written = spec.to_runtime().unwrap();
        assert_eq!(MachineSpec::from_runtime("db", &written).unwrap(), spec);
        assert!(MachineSpec::from_runtime("db", "").is_err());
    }
}
