//! The driver of managed `MicroVMs`, each in a worker process of its own.

use std::fs::File;
use std::path::{Path, PathBuf};

use retrovisor_guest::{
    Accelerator, Attach, ControlPort, DirtyFinder, Driver, DriverFeatures, Launch, LaunchSpec, Lifespan,
    MachineError, ProcessIdentity, Start, Vm,
};

use super::boot::Boot;
use super::config::{KvmConfig, MemorySource};
use super::disk::DiskConfig;
use super::hubs::Hubs;
use super::layout::memory_layout;
use super::machine::launch::check_vcpus;
use super::net::link::NetBackend;
use super::worker::{Limits, RemoteConfig, RemoteMachine};
use crate::{accelerator, process};

/// The argument with which this program becomes a worker; see [`super::worker_process`].
pub const WORKER_VERB: &str = "machine-worker";

/// The name in specs and identities.
const NAME: &str = "kvm";

/// `MicroVMs`. The worker is this program, called with [`WORKER_VERB`].
pub struct KvmDriver {
    hubs: Hubs,
}

impl KvmDriver {
    /// `hubs_dir` is the folder for the sockets of hubs.
    #[must_use]
    pub fn new(hubs_dir: &Path) -> Self {
        Self { hubs: Hubs::new(hubs_dir) }
    }

    /// Hubs end with the process that served them, so the worker is given connections to the new ones. It still has its
    /// tap.
    fn plug_in(&self, machine: &mut RemoteMachine, attach: &Attach<'_>) -> Result<(), MachineError> {
        for (index, plug) in self.hubs.plugs(attach.interfaces)?.into_iter().enumerate() {
            if matches!(plug.backend, NetBackend::Hub(_)) {
                machine.plug(index, &plug.backend)?;
            }
        }
        Ok(())
    }
}

impl Driver for KvmDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> DriverFeatures {
        DriverFeatures { networks: true, renews_identity: true, restores_from_boot_files: false }
    }

    fn check_host(&self) -> Result<(), MachineError> {
        let detected = accelerator::detect();
        if detected.accelerator == Accelerator::Kvm {
            return Ok(());
        }
        Err(MachineError::Config {
            what: format!("a microVM does not run here: {}", detected.reason),
            help: "Or run it with `--driver qemu`, which translates where there is no KVM".into(),
        })
    }

    fn check(&self, spec: &LaunchSpec) -> Result<(), MachineError> {
        memory_layout(spec.memory_bytes)?;
        check_vcpus(spec.vcpus)?;
        for path in spec.initrd.iter().chain([&spec.kernel]).chain(&spec.disks) {
            File::open(path).map_err(|error| MachineError::Config {
                what: format!("{} cannot be read: {error}", path.display()),
                help: "Name a kernel (bzImage), its initial RAM file system and disk images that are there"
                    .into(),
            })?;
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<Box<dyn Vm>, MachineError> {
        let spec = launch.spec;
        let awaits_state = matches!(launch.start, Start::AwaitsState(_));
        let disks = spec.disks.iter().map(|path| DiskConfig {
            base: Some(path.clone()),
            size_bytes: None,
            read_only: false,
            changes_dir: launch.runtime_dir.to_owned(),
        });
        let program = std::env::current_exe().map_err(|source| MachineError::Io {
            doing: "finding this program, to start a worker".into(),
            source,
        })?;
        Ok(Box::new(RemoteMachine::launch(&RemoteConfig {
            machine: KvmConfig {
                name: launch.name.to_owned(),
                layout: memory_layout(spec.memory_bytes)?,
                memory: MemorySource::Fresh,
                vcpus: spec.vcpus,
                boot: Boot::Linux {
                    kernel: spec.kernel.clone(),
                    initrd: spec.initrd.clone(),
                    append: spec.append.clone(),
                },
                disks: disks.collect(),
                nets: self.hubs.plugs(&spec.interfaces)?,
                channel: spec.channel,
                paused: awaits_state,
            },
            program,
            arguments: vec![WORKER_VERB.into()],
            runtime_dir: launch.runtime_dir.to_owned(),
            awaits_state,
            detached: launch.lifespan == Lifespan::Independent,
            limits: Limits::of(launch.name),
        })?))
    }

    fn find(&self, attach: &Attach<'_>) -> Result<ProcessIdentity, MachineError> {
        RemoteMachine::find(attach.runtime_dir)
    }

    fn attach(&self, attach: &Attach<'_>) -> Result<Box<dyn Vm>, MachineError> {
        let mut machine = RemoteMachine::attach(attach.name, attach.runtime_dir)?;
        if let Err(error) = self.plug_in(&mut machine, attach) {
            tracing::warn!(machine = attach.name, %error, "the guest has no network any more");
        }
        Ok(Box::new(machine))
    }

    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        process::is_alive(process)
    }

    fn kill(&self, process: &ProcessIdentity) -> Result<(), MachineError> {
        process::kill(process)
            .map_err(|source| MachineError::Io { doing: format!("ending process {}", process.pid), source })
    }
}

impl Vm for RemoteMachine {
    fn process(&self) -> ProcessIdentity {
        self.process_identity()
    }

    fn console(&self) -> Option<PathBuf> {
        Some(self.console())
    }

    fn console_log(&self) -> Option<PathBuf> {
        Some(self.console_log())
    }

    fn control_port(&self) -> Option<ControlPort> {
        Some(ControlPort { socket: self.channel()?, terminal: "hvc0 (module virtio_console)" })
    }

    fn links(&self) -> Vec<bool> {
        self.nets().unwrap_or_default().into_iter().map(|net| net.up).collect()
    }

    fn dirty_finder(&self) -> DirtyFinder {
        DirtyFinder { name: "kvm log", reason: "KVM and the devices note what they write".into() }
    }

    fn confinement(&self) -> String {
        let confinement = self.confinement();
        let missing = confinement.missing.iter().map(|(what, why)| format!("; not {what} ({why})"));
        confinement.done.join(", ") + &missing.collect::<String>()
    }

    fn renew_identity(&mut self) -> Result<(), MachineError> {
        self.renew_generation_id()
    }

    fn make_independent(&mut self) -> Result<(), MachineError> {
        self.detach()
    }

    fn quit(self: Box<Self>) {
        (*self).quit();
    }
}
