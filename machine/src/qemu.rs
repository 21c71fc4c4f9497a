//! Stock QEMU, 7.2 and later, unpatched, through its monitor.
//!
//! - The guest's memory is a file that QEMU and this process share (`-object memory-backend-file,share=on`). The kernel
//!   tracks written pages of QEMU's process, or they are found by comparing.
//! - The job `snapshot-save` saves device state into a small qcow2 file in shared memory; `snapshot-load` restores it
//!   from another such file, in the same process or a new one. `x-ignore-shared` excludes the guest's memory from both,
//!   and is on during these jobs only.
//! - Disks are qcow2 overlays over the user's images; the same two jobs retain and restore their contents.

mod attach;
mod compare;
mod device_state;
mod devices;
mod dirty_finder;
mod disk;
mod disk_io;
mod driver;
mod event;
mod fd_set;
mod launch;
mod layout;
mod mapping;
mod memory;
mod memory_file;
mod message;
mod migration;
mod monitor;
mod owner_snapshot;
mod pagemap;
mod qcow2;
mod qmp;
mod registers;
mod runtime;
mod shape;
mod state_io;
mod stopped_thread;
mod stream;
mod write_protection;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use retrovisor_guest::{
    Capabilities, Gfn, GuestEvent, Machine, MachineError, MachineIdentity, MemoryIo, MemoryView, PageContent,
    PageSet, RunState,
};

pub use attach::AttachConfig;
pub use disk::DiskConfig;
pub use driver::QemuDriver;
pub use launch::LaunchConfig;

use attach::Parts;
use device_state::{Clients, DeviceState};
use devices::Devices;
use disk::{DiskSet, TAG_PREFIX};
use memory::GuestRam;
use monitor::Monitor;
use runtime::RuntimeDir;
use shape::Shape;
use stream::RegisterFinder;

/// A QEMU process and the guest in it.
pub struct QemuMachine {
    identity: MachineIdentity,
    shape: Shape,
    monitor: Monitor,
    ram: GuestRam,
    registers: RegisterFinder,
    device_state: DeviceState,
    disks: DiskSet,
    devices: Devices,
    runtime: RuntimeDir,
    /// QEMU continues when this is dropped.
    detached: bool,
    /// Applying a state began and failed: the guest must not run in its current state.
    half_applied: bool,
    /// How often another client had resumed the guest at the last pause.
    resumed_before: u64,
    timing: Timing,
    tags: u64,
}

/// Durations of the parts of the last pause, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Stopping the vCPUs and bringing devices to rest.
    pub stop_us: u64,
    /// Finding dirty pages.
    pub find_us: u64,
    /// Saving registers, device state and disks.
    pub state_us: u64,
    /// Setting the vCPUs running.
    pub cont_us: u64,
    /// Loading device state and disks.
    pub load_us: u64,
}

impl QemuMachine {
    /// Starts QEMU. After a failure no process remains.
    pub fn launch(config: &LaunchConfig) -> Result<Self, MachineError> {
        let (qmp, process) = launch::launch(config)?;
        let runtime = RuntimeDir::new(&config.runtime_dir);
        let mut monitor = Monitor::new(&config.name, qmp, process)?;
        match Parts::of(&mut monitor, Clients::One) {
            Ok(parts) => {
                if config.detached {
                    monitor.process().keep();
                }
                Ok(Self::assemble(&config.name, monitor, parts, runtime, config.detached))
            }
            Err(error) => {
                monitor.quit();
                runtime.remove_sockets();
                Err(error)
            }
        }
    }

    /// Attaches to a QEMU that another program, or an earlier process of this one, started. QEMU continues when this
    /// machine is dropped.
    ///
    /// Does not change whether the guest runs. Refuses a guest whose memory is not a shared file or whose disks cannot
    /// be rolled back, with the options to start QEMU with.
    pub fn attach(config: &AttachConfig) -> Result<Self, MachineError> {
        let mut monitor = attach::connect(config)?;
        let runtime = RuntimeDir::new(&config.runtime_dir);
        let clients = if config.qmp == runtime.monitor() { Clients::One } else { Clients::Several };
        let parts = Parts::of(&mut monitor, clients)?;
        Ok(Self::assemble(&config.name, monitor, parts, runtime, true))
    }

    fn assemble(name: &str, monitor: Monitor, parts: Parts, runtime: RuntimeDir, detached: bool) -> Self {
        let Parts { shape, ram, device_state, disks, devices } = parts;
        let identity = MachineIdentity {
            name: name.to_owned(),
            driver: "qemu".into(),
            version: monitor.version().to_string(),
            accelerator: shape.accelerator,
            vcpus: shape.vcpus,
            layout: shape.layout.clone(),
        };
        let (way, reason) = ram.finder().describe();
        tracing::info!(
            machine = name,
            version = identity.version,
            finder = way,
            reason,
            "attached to the machine"
        );
        Self {
            identity,
            shape,
            monitor,
            ram,
            registers: RegisterFinder::default(),
            device_state,
            disks: DiskSet::new(disks),
            devices,
            runtime,
            detached,
            half_applied: false,
            resumed_before: 0,
            timing: Timing::default(),
            tags: 0,
        }
    }

    /// The socket of the guest's first serial port, if this project launched the guest.
    #[must_use]
    pub fn console(&self) -> Option<PathBuf> {
        Some(self.runtime.console()).filter(|path| path.exists())
    }

    /// The file with all output of the guest on its first serial port, if this project launched the guest.
    #[must_use]
    pub fn console_log(&self) -> Option<PathBuf> {
        Some(self.runtime.console_log()).filter(|path| path.exists())
    }

    /// The socket of the guest's second serial port, if this project launched the guest.
    #[must_use]
    pub fn control(&self) -> Option<PathBuf> {
        Some(self.runtime.control()).filter(|path| path.exists())
    }

    /// QEMU's process number.
    pub fn pid(&mut self) -> i32 {
        self.monitor.process().pid()
    }

    /// The durations of the parts of the last pause.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// How dirty pages are found (`userfaultfd` or `compare`), and the reason.
    #[must_use]
    pub fn finder(&self) -> (&'static str, &str) {
        self.ram.finder().describe()
    }

    /// Removes everything that attaching added to QEMU, and ends the connection: QEMU is then as before the attach.
    /// With `deletes_snapshots`, also the snapshots that this driver made in the disks' images; without, they stay.
    /// Checkpoints whose disk contents are in no store need them.
    ///
    /// Every step is tried; the error has what could not be removed.
    pub fn detach(mut self, deletes_snapshots: bool) -> Result<(), MachineError> {
        self.detached = true;
        self.monitor.process().keep();
        let mut left = Vec::new();
        if let Err(error) = self.device_state.tidy(&mut self.monitor) {
            left.push(format!("saved states: {error}"));
        }
        if deletes_snapshots {
            let retained = self.disks.retained(&mut self.monitor);
            let deleted = retained.and_then(|retained| self.disks.release(&mut self.monitor, &retained));
            if let Err(error) = deleted {
                left.push(format!("snapshots in the disks: {error}"));
            }
        }
        left.extend(self.device_state.remove(&mut self.monitor));
        if let Err(error) = write_protection::remove(self.pid()) {
            left.push(format!("write protection of the memory: {error}"));
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(MachineError::Driver { doing: "removing everything from QEMU".into(), message: left.join("; ") })
    }

    /// Ends QEMU, also a detached one. Logs and disk overlays stay in the runtime directory.
    pub fn quit(mut self) {
        self.monitor.quit();
        self.runtime.remove_sockets();
        self.detached = true;
    }

    fn needs_pause(&mut self, doing: &'static str) -> Result<(), MachineError> {
        self.monitor.read_events()?;
        if self.monitor.running() { Err(MachineError::RunState { doing, needed: "paused" }) } else { Ok(()) }
    }

    /// Refuses a state whose memory was read before another client resumed the guest.
    fn needs_uninterrupted_pause(&mut self) -> Result<(), MachineError> {
        self.needs_pause("capturing the state")?;
        if self.monitor.resumed_by_others() == self.resumed_before {
            return Ok(());
        }
        Err(MachineError::Driver {
            doing: "capturing the state".into(),
            message: "another program resumed the guest during the pause".into(),
        })
    }

    /// Frees states that QEMU saved and that were read, which only take memory: meant for the time after a pause.
    fn tidy(&mut self) {
        if let Err(error) = self.device_state.tidy(&mut self.monitor) {
            tracing::warn!(machine = self.identity.name, %error, "device state that was read stays in QEMU for now");
        }
    }

    /// A name that no other snapshot has, in this process or another.
    fn new_tag(&mut self) -> String {
        self.tags += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        format!("{TAG_PREFIX}{:x}-{}-{}", now.as_nanos(), std::process::id(), self.tags)
    }
}

impl Machine for QemuMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn capabilities(&self) -> Capabilities {
        let disk_blocks = self.disks.have_blocks();
        Capabilities { clock_jump: false, disk_blocks, hot_plug: true, line_writes: false }
    }

    fn run_state(&mut self) -> RunState {
        self.monitor.run_state()
    }

    fn events(&mut self) -> Vec<GuestEvent> {
        self.monitor.guest_events()
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.monitor.read_events()?;
        self.resumed_before = self.monitor.resumed_by_others();
        if !self.monitor.running() {
            return Ok(());
        }
        if self.device_state.has_other_clients() {
            migration::refuse(&mut self.monitor)?;
        }
        let begin = Instant::now();
        self.monitor.stop()?;
        self.resumed_before = self.monitor.resumed_by_others();
        self.timing = Timing { stop_us: microseconds(begin), ..Timing::default() };
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.monitor.read_events()?;
        if self.half_applied {
            return Err(MachineError::RunState {
                doing: "resuming after a state that failed to apply",
                needed: "restored",
            });
        }
        if self.monitor.running() {
            return Ok(());
        }
        let begin = Instant::now();
        if self.device_state.has_other_clients() {
            migration::refuse_resume(&mut self.monitor)?;
        }
        self.ram.unsettle();
        self.monitor.cont()?;
        self.timing.cont_us = microseconds(begin);
        Ok(())
    }
}

impl MemoryIo for QemuMachine {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        // Another client of QEMU may have stopped or started the guest.
        self.monitor.read_events()?;
        let begin = Instant::now();
        let is_running = self.monitor.running();
        if let Err(error) = self.ram.take_dirty(is_running, into) {
            // The scan of a process that ended fails with unclear errors: report the end instead.
            self.monitor.read_events()?;
            return Err(error);
        }
        self.timing.find_us = microseconds(begin);
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.ram
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        if self.monitor.running() {
            return Err(MachineError::RunState { doing: "writing memory", needed: "paused" });
        }
        Ok(self.ram.write_page(gfn, content)?)
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        if !self.detached {
            self.monitor.process().kill();
            self.runtime.remove_sockets();
        }
    }
}

fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
