//! The driver of machines under stock QEMU.

use std::path::{Path, PathBuf};

use retrovisor_guest::{
    Attach, ControlPort, DirtyFinder, Driver, DriverFeatures, Launch, LaunchSpec, Lifespan, MachineError,
    ProcessIdentity, Start, Vm,
};

use super::attach::{self, AttachConfig};
use super::runtime::RuntimeDir;
use super::shape::Shape;
use super::{DiskConfig, LaunchConfig, QemuMachine};
use crate::process;

/// The name in specs and identities.
const NAME: &str = "qemu";

/// Stock QEMU.
#[derive(Clone, Copy, Debug)]
pub struct QemuDriver;

impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> DriverFeatures {
        DriverFeatures { restores_from_boot_files: true, ..DriverFeatures::default() }
    }

    fn check_host(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn check(&self, spec: &LaunchSpec) -> Result<(), MachineError> {
        if !spec.interfaces.is_empty() {
            return Err(MachineError::Config {
                what: "a guest under QEMU has no network here: only microVMs have".into(),
                help: "Run it with `--driver kvm`, which needs KVM on hardware, or without --net".into(),
            });
        }
        config("check", spec, Path::new("")).check().map(|_| ())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<Box<dyn Vm>, MachineError> {
        self.check(launch.spec)?;
        let (paused, board) = match launch.start {
            Start::Boots => (false, None),
            Start::AwaitsState(state) => (true, Shape::board_of(state)),
        };
        let config = LaunchConfig {
            paused,
            board,
            // Whether QEMU ends with this process is decided at its start.
            detached: launch.lifespan != Lifespan::Bound,
            ..config(launch.name, launch.spec, launch.runtime_dir)
        };
        Ok(Box::new(QemuMachine::launch(&config)?))
    }

    fn find(&self, attach: &Attach<'_>) -> Result<ProcessIdentity, MachineError> {
        attach::find(&attach_config(attach))
    }

    fn attach(&self, attach: &Attach<'_>) -> Result<Box<dyn Vm>, MachineError> {
        Ok(Box::new(QemuMachine::attach(&attach_config(attach))?))
    }

    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        process::is_alive(process)
    }

    fn kill(&self, process: &ProcessIdentity) -> Result<(), MachineError> {
        process::kill(process)
            .map_err(|source| MachineError::Io { doing: format!("ending process {}", process.pid), source })
    }
}

fn config(name: &str, spec: &LaunchSpec, runtime_dir: &Path) -> LaunchConfig {
    let disks = spec.disks.iter().enumerate();
    LaunchConfig {
        name: name.to_owned(),
        kernel: spec.kernel.clone(),
        initrd: spec.initrd.clone(),
        append: spec.append.clone(),
        disks: disks.map(|(at, path)| DiskConfig { name: format!("d{at}"), path: path.clone() }).collect(),
        memory_bytes: spec.memory_bytes,
        vcpus: spec.vcpus,
        accelerator: spec.accelerator,
        runtime_dir: runtime_dir.to_owned(),
        binary: None,
        board: None,
        paused: false,
        detached: false,
    }
}

fn attach_config(attach: &Attach<'_>) -> AttachConfig {
    let own = || RuntimeDir::new(attach.runtime_dir).monitor();
    AttachConfig {
        name: attach.name.to_owned(),
        qmp: attach.socket.map_or_else(own, Path::to_owned),
        runtime_dir: attach.runtime_dir.to_owned(),
    }
}

impl Vm for QemuMachine {
    fn process(&self) -> ProcessIdentity {
        self.monitor.process_identity().clone()
    }

    fn console(&self) -> Option<PathBuf> {
        self.console()
    }

    fn console_log(&self) -> Option<PathBuf> {
        self.console_log()
    }

    fn control_port(&self) -> Option<ControlPort> {
        Some(ControlPort { socket: self.control()?, terminal: "ttyS1" })
    }

    fn dirty_finder(&self) -> DirtyFinder {
        let (name, reason) = self.finder();
        DirtyFinder { name, reason: reason.to_owned() }
    }

    fn make_independent(&mut self) -> Result<(), MachineError> {
        if self.detached {
            return Ok(());
        }
        Err(MachineError::Unsupported {
            what: "letting a QEMU go on that was started to end with this process".into(),
            help: "Its state is in the store: `retrovisor rollback` brings it back".into(),
        })
    }

    fn detach(self: Box<Self>, deletes_snapshots: bool) -> Result<(), MachineError> {
        (*self).detach(deletes_snapshots)
    }

    fn quit(self: Box<Self>) {
        (*self).quit();
    }
}
