use std::path::{Path, PathBuf};
use std::time::Duration;

use retrovisor_guest::Accelerator;
use retrovisor_machine::accelerator;
use retrovisor_machine::kvm::{
    self, Boot, KvmConfig, Limits, MemorySource, NetBackend, RemoteConfig, RemoteMachine,
};
use retrovisor_machine::qemu::{AttachConfig, DiskConfig, LaunchConfig, QemuMachine};
use serde::{Deserialize, Serialize};

use crate::error::ManagerError;
use crate::network::{Hubs, Interface};
use crate::vm::Vm;

/// The verb under which this program is a worker.
pub const WORKER_VERB: &str = "machine-worker";

/// How a machine is found or started again: kept in the catalogue beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Interval between automatic checkpoints; 0 for none.
    pub every_ms: u32,
    /// QMP socket, when it is not at its place in the runtime directory.
    pub qmp: Option<PathBuf>,
    /// Where it came from.
    pub origin: Origin,
    /// Whether the machine outlives the process that manages it.
    pub detached: bool,
}

/// Where a machine came from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Retrovisor started it.
    Launched {
        /// Linux kernel (bzImage).
        kernel: PathBuf,
        /// Initial RAM file system.
        initrd: Option<PathBuf>,
        /// Kernel command line.
        append: String,
        /// Disk images; they are only read.
        disks: Vec<PathBuf>,
        /// Memory.
        memory_bytes: u64,
        /// Number of vCPUs.
        vcpus: u32,
        /// Specs of earlier versions do not say it.
        #[serde(default)]
        driver: Driver,
        /// QEMU's. `None`: KVM where it can run Linux, else TCG.
        accelerator: Option<Accelerator>,
        /// A microVM's network interfaces, in order.
        #[serde(default)]
        interfaces: Vec<Interface>,
        /// Whether a microVM has a control channel; those of earlier versions have none.
        #[serde(default)]
        channel: bool,
    },
    /// Another program started it.
    Attached,
}

/// What runs a machine that we start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Stock QEMU.
    #[default]
    Qemu,
    /// A microVM, in a worker process.
    Kvm,
}

/// How a VM begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With its kernel.
    Runs,
    /// It waits for the state of a checkpoint.
    AwaitsState,
    /// The same; it ends with this process, as far as the driver can, until [`Vm::detach`] is called.
    AwaitsStateHere,
}

impl Driver {
    /// The driver of that name that can run Linux on this host; `auto` is the quickest one.
    pub fn choose(name: &str) -> Result<Self, ManagerError> {
        let detected = accelerator::detect();
        let kvm = detected.accelerator == Accelerator::Kvm;
        match name {
            "qemu" => Ok(Self::Qemu),
            "" | "auto" if !kvm => Ok(Self::Qemu),
            "" | "auto" => Ok(Self::Kvm),
            "kvm" if kvm => Ok(Self::Kvm),
            "kvm" => Err(ManagerError::Refused {
                what: format!("a microVM does not run here: {}", detected.reason),
                help: "Or run it with `--driver qemu`, which translates where there is no KVM.".to_owned(),
            }),
            other => Err(ManagerError::Invalid(format!(
                "there is no driver `{}`: use kvm, qemu or auto",
                other.escape_debug()
            ))),
        }
    }
}

impl Spec {
    /// Reads back what the catalogue kept.
    pub fn from_runtime(name: &str, runtime: &str) -> Result<Self, ManagerError> {
        serde_json::from_str(runtime).map_err(|_| ManagerError::Refused {
            what: format!("the store does not say how {name} is started"),
            help: "Start it with `retrovisor run`, or take it over with `retrovisor attach`.".to_owned(),
        })
    }

    /// The interval between automatic checkpoints, if there are any.
    pub fn interval(&self) -> Option<Duration> {
        (self.every_ms > 0).then(|| Duration::from_millis(self.every_ms.into()))
    }

    /// The network interfaces it has, in order.
    pub fn interfaces(&self) -> &[Interface] {
        match &self.origin {
            Origin::Launched { interfaces, .. } => interfaces,
            Origin::Attached => &[],
        }
    }

    /// Starts the VM.
    pub(crate) fn launch(
        &self,
        name: &str,
        runtime_dir: &Path,
        hubs: &Hubs,
        start: Start,
    ) -> Result<Vm, ManagerError> {
        let paused = start != Start::Runs;
        let Origin::Launched {
            kernel,
            initrd,
            append,
            disks,
            memory_bytes,
            vcpus,
            driver,
            accelerator,
            interfaces,
            channel,
        } = &self.origin
        else {
            return Err(ManagerError::Invalid(format!("{name} was not started by Retrovisor")));
        };
        if *driver == Driver::Kvm {
            let disks = disks.iter().map(|path| kvm::DiskConfig {
                base: Some(path.clone()),
                size_bytes: None,
                read_only: false,
                changes_dir: runtime_dir.to_owned(),
            });
            let program = std::env::current_exe().map_err(|source| ManagerError::Io {
                doing: "cannot find our own program, to start a worker".to_owned(),
                source,
            })?;
            return Ok(Vm::Kvm(Box::new(RemoteMachine::launch(&RemoteConfig {
                machine: KvmConfig {
                    name: name.to_owned(),
                    layout: kvm::memory_layout(*memory_bytes)?,
                    memory: MemorySource::Fresh,
                    vcpus: *vcpus,
                    boot: Boot::Linux {
                        kernel: kernel.clone(),
                        initrd: initrd.clone(),
                        append: append.clone(),
                    },
                    disks: disks.collect(),
                    nets: hubs.plugs(interfaces)?,
                    channel: *channel,
                    paused,
                },
                program,
                arguments: vec![WORKER_VERB.into()],
                runtime_dir: runtime_dir.to_owned(),
                awaits_state: paused,
                detached: self.detached && start != Start::AwaitsStateHere,
                limits: Limits::of(name),
            })?)));
        }
        let disks = disks
            .iter()
            .enumerate()
            .map(|(at, path)| DiskConfig { name: format!("d{at}"), path: path.clone() });
        Ok(Vm::Qemu(Box::new(QemuMachine::launch(&LaunchConfig {
            name: name.to_owned(),
            kernel: kernel.clone(),
            initrd: initrd.clone(),
            append: append.clone(),
            disks: disks.collect(),
            memory_bytes: *memory_bytes,
            vcpus: *vcpus,
            accelerator: *accelerator,
            runtime_dir: runtime_dir.to_owned(),
            binary: None,
            paused,
            detached: self.detached,
        })?)))
    }

    /// Takes a running VM over.
    pub(crate) fn attach(&self, name: &str, runtime_dir: &Path, hubs: &Hubs) -> Result<Vm, ManagerError> {
        if matches!(self.origin, Origin::Launched { driver: Driver::Kvm, .. }) {
            let mut machine = RemoteMachine::attach(name, runtime_dir)?;
            if let Err(error) = self.plug_in(&mut machine, hubs) {
                tracing::warn!(machine = name, %error, "the guest has a network no more");
            }
            return Ok(Vm::Kvm(Box::new(machine)));
        }
        let qmp = self.qmp.clone().unwrap_or_else(|| runtime_dir.join("qmp"));
        Ok(Vm::Qemu(Box::new(QemuMachine::attach(&AttachConfig {
            name: name.to_owned(),
            qmp,
            runtime_dir: runtime_dir.to_owned(),
        })?)))
    }

    /// Hubs went away with the daemon that served them: the worker is given connections to ours. Taps it still has.
    fn plug_in(&self, machine: &mut RemoteMachine, hubs: &Hubs) -> Result<(), ManagerError> {
        for (index, plug) in hubs.plugs(self.interfaces())?.into_iter().enumerate() {
            if matches!(plug.backend, NetBackend::Hub(_)) {
                machine.plug(index, &plug.backend)?;
            }
        }
        Ok(())
    }
}
