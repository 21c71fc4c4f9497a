//! Stock QEMU, 7.2 and later, unpatched, over its monitor.
//!
//! - The guest's memory is a file that QEMU and this process share (`-object memory-backend-file,share=on`). Dirty
//!   pages are noted by the kernel for QEMU's process, or found by comparing.
//! - Device state leaves QEMU as bytes, by the job `snapshot-save` into a small qcow2 file in shared memory, and is
//!   put back by `snapshot-load` from another one made around the bytes: into the same process or a new one.
//!   `x-ignore-shared` keeps the guest's memory out of both.
//! - Disks are qcow2 overlays over the user's images; the same two jobs keep and put back their contents.

mod attach;
mod device_state;
mod disk;
mod event;
mod finder;
mod launch;
mod layout;
mod mapping;
mod memory_file;
mod message;
mod monitor;
mod pagemap;
mod process;
mod qcow2;
mod qmp;
mod registers;
mod runtime;
mod shape;
mod stream;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use retrovisor_guest::{
    BlockContent, ClockPolicy, DiskChanges, DiskShape, DiskState, Gfn, Machine, MachineError,
    MachineIdentity, MachineState, MemoryView, PageContent, PageSet, RunState,
};
use serde_json::json;

pub use attach::AttachConfig;
pub use disk::DiskConfig;
pub use event::GuestEvent;
pub use launch::LaunchConfig;

use attach::Parts;
use device_state::DeviceState;
use disk::{AttachedDisk, BlockWriter};
use finder::Finder;
use monitor::Monitor;
use runtime::RuntimeDir;
use shape::Shape;
use stream::RegisterFinder;

use crate::ram::Ram;

/// What the names of all disk snapshots of ours begin with.
const TAG_PREFIX: &str = "rv-";

/// States that QEMU saved and we have read (half a megabyte each) are freed while the guest runs; so many may wait.
const UNTIDY_MAX: usize = 16;

/// A QEMU process and the guest in it.
pub struct QemuMachine {
    identity: MachineIdentity,
    shape: Shape,
    monitor: Monitor,
    ram: Ram,
    finder: Finder,
    registers: RegisterFinder,
    device_state: DeviceState,
    disks: Vec<AttachedDisk>,
    /// Of those of `disks` whose blocks can be read.
    disk_shapes: Vec<DiskShape>,
    /// Blocks that were written and not checked.
    blocks: BlockWriter,
    runtime: RuntimeDir,
    /// QEMU lives on when this is dropped.
    detached: bool,
    /// A state was begun to be applied and failed: the guest must not run on what is there now.
    half_applied: bool,
    timing: Timing,
    tags: u64,
}

/// How long the parts of the last pause took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Stopping the vCPUs and bringing devices to rest.
    pub stop_us: u64,
    /// Finding dirty pages.
    pub find_us: u64,
    /// Saving registers, device state and disks.
    pub state_us: u64,
    /// Letting the vCPUs run again.
    pub cont_us: u64,
    /// Loading device state and disks.
    pub load_us: u64,
}

impl QemuMachine {
    /// Starts a QEMU of our own.
    pub fn launch(config: &LaunchConfig) -> Result<Self, MachineError> {
        let (qmp, process) = launch::launch(config)?;
        let runtime = RuntimeDir::new(&config.runtime_dir);
        let mut monitor = Monitor::new(&config.name, qmp, process)?;
        match Parts::of(&mut monitor) {
            Ok(parts) => Ok(Self::assemble(&config.name, monitor, parts, runtime, config.detached)),
            Err(error) => {
                monitor.quit();
                runtime.remove_sockets();
                Err(error)
            }
        }
    }

    /// Takes over a QEMU that others, or an earlier self, started. It lives on when this machine is dropped.
    ///
    /// Whether the guest runs is not changed. Refuses, with the options to start QEMU with, a guest whose memory
    /// is not a shared file or whose disks cannot go back.
    pub fn attach(config: &AttachConfig) -> Result<Self, MachineError> {
        let mut monitor = attach::connect(config)?;
        let parts = Parts::of(&mut monitor)?;
        Ok(Self::assemble(&config.name, monitor, parts, RuntimeDir::new(&config.runtime_dir), true))
    }

    fn assemble(name: &str, monitor: Monitor, parts: Parts, runtime: RuntimeDir, detached: bool) -> Self {
        let Parts { shape, ram, finder, device_state, disks } = parts;
        let identity = MachineIdentity {
            name: name.to_owned(),
            driver: "qemu".into(),
            version: monitor.version().to_string(),
            accelerator: shape.accelerator,
            vcpus: shape.vcpus,
            layout: shape.layout.clone(),
        };
        let (way, reason) = finder.describe();
        tracing::info!(
            machine = name,
            version = identity.version,
            finder = way,
            reason,
            "machine taken over"
        );
        Self {
            identity,
            shape,
            monitor,
            ram,
            finder,
            registers: RegisterFinder::default(),
            device_state,
            disk_shapes: disks.iter().filter_map(|disk| disk.shape.clone()).collect(),
            disks,
            blocks: BlockWriter::default(),
            runtime,
            detached,
            half_applied: false,
            timing: Timing::default(),
            tags: 0,
        }
    }

    /// The socket of the guest's first serial port, when this project launched the guest.
    #[must_use]
    pub fn console(&self) -> Option<PathBuf> {
        Some(self.runtime.console()).filter(|path| path.exists())
    }

    /// The file with all that the guest wrote to its first serial port, when this project launched the guest.
    #[must_use]
    pub fn console_log(&self) -> Option<PathBuf> {
        Some(self.runtime.console_log()).filter(|path| path.exists())
    }

    /// The socket of the guest's second serial port, when this project launched the guest.
    #[must_use]
    pub fn control(&self) -> Option<PathBuf> {
        Some(self.runtime.control()).filter(|path| path.exists())
    }

    /// QEMU's process number.
    pub fn pid(&mut self) -> i32 {
        self.monitor.process().pid()
    }

    /// What happened to the guest since the last call.
    pub fn events(&mut self) -> Vec<GuestEvent> {
        self.monitor.guest_events()
    }

    /// How long the parts of the last pause took.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// How dirty pages are found (`userfaultfd` or `compare`), and why so.
    #[must_use]
    pub fn finder(&self) -> (&'static str, &str) {
        self.finder.describe()
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

    /// Frees what QEMU saved for us and we have read: a matter of room, never worth the guest's time.
    fn tidy(&mut self) {
        if let Err(error) = self.device_state.tidy(&mut self.monitor) {
            tracing::warn!(machine = self.identity.name, %error, "device state that was read stays in QEMU for now");
        }
    }

    /// QEMU's names of the disks.
    fn disk_nodes(&self) -> Vec<String> {
        self.disks.iter().map(|disk| disk.node.clone()).collect()
    }

    fn disk(&self, name: &str) -> Result<&AttachedDisk, MachineError> {
        self.disks.iter().find(|disk| disk.node == name).ok_or_else(|| MachineError::Mismatch {
            what: "the disks".into(),
            expected: name.to_owned(),
            found: format!("{:?}", self.disk_nodes()),
        })
    }

    /// A name that no snapshot has, in this process or another.
    fn new_tag(&mut self) -> String {
        self.tags += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        format!("{TAG_PREFIX}{:x}-{}-{}", now.as_nanos(), std::process::id(), self.tags)
    }

    /// The snapshot that the disks must go back to, after checking that every disk of the machine has it; none when
    /// they are to stay as they are.
    fn check_disks(&mut self, state: &MachineState) -> Result<Option<String>, MachineError> {
        let mismatch = |expected: String, found: String| MachineError::Mismatch {
            what: "the disks".into(),
            expected,
            found,
        };
        let mut expected: Vec<_> = state.disks.iter().map(|disk| disk.disk.clone()).collect();
        let mut found = self.disk_nodes();
        expected.sort();
        found.sort();
        if expected != found {
            return Err(mismatch(format!("{expected:?}"), format!("{found:?}")));
        }
        let Some(tag) = state.disks.first().map(|disk| disk.reference.clone()) else { return Ok(None) };
        if let Some(other) = state.disks.iter().find(|disk| disk.reference != tag) {
            return Err(mismatch(
                format!("the snapshots {tag} and {}", other.reference),
                "one for all".into(),
            ));
        }
        if tag.is_empty() {
            return Ok(None);
        }
        let nodes = self.monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        match self.disks.iter().find(|disk| !disk::snapshots(&nodes, &disk.node).any(|own| own == tag)) {
            Some(disk) => {
                Err(mismatch(format!("{} at {tag}", disk.node), "a disk without that snapshot".into()))
            }
            None => Ok(Some(tag)),
        }
    }
}

impl Machine for QemuMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    /// A guest that switched itself off is [`RunState::Gone`]; it can still be read, and taken back by
    /// [`Machine::apply_state`].
    fn run_state(&mut self) -> RunState {
        if !self.monitor.alive() || self.monitor.shut_down() {
            RunState::Gone
        } else if self.monitor.running() {
            RunState::Running
        } else {
            RunState::Paused
        }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.monitor.read_events()?;
        if !self.monitor.running() {
            return Ok(());
        }
        let begin = Instant::now();
        self.monitor.stop()?;
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
        self.monitor.cont()?;
        self.timing.cont_us = microseconds(begin);
        Ok(())
    }

    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let begin = Instant::now();
        let running = self.monitor.running();
        if let Err(error) = self.finder.take(&self.ram, running, into) {
            // The scan of a process that ended fails in odd ways: say what it is.
            self.monitor.read_events()?;
            return Err(error);
        }
        self.timing.find_us = microseconds(begin);
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.ram
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.needs_pause("capturing the state")?;
        if self.device_state.untidy() > UNTIDY_MAX {
            self.tidy();
        }
        let begin = Instant::now();
        let text = self.monitor.human("info registers -a")?;
        let driver = |message| MachineError::Driver { doing: "reading the vCPUs' registers".into(), message };
        let mut vcpus = registers::parse(&text).map_err(driver)?;
        if u32::try_from(vcpus.len()) != Ok(self.identity.vcpus) {
            return Err(driver(format!("QEMU showed {} of {} vCPUs", vcpus.len(), self.identity.vcpus)));
        }
        let tag = self.new_tag();
        let nodes = self.disk_nodes();
        let stream = self.device_state.save(&mut self.monitor, &tag, &nodes)?;
        self.registers.complete(&stream, &mut vcpus);
        let disks = nodes.into_iter().map(|disk| DiskState { disk, reference: tag.clone() });
        let state = MachineState { vcpus, sections: self.shape.sections(stream)?, disks: disks.collect() };
        self.timing.state_us = microseconds(begin);
        Ok(state)
    }

    /// QEMU does not wait for the host's disk while the guest stands still: this does, from outside, while it runs.
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        if self.monitor.running() {
            self.tidy();
        }
        let disks = if state.disks.is_empty() { &[][..] } else { &self.disks };
        for path in disks.iter().filter_map(|disk| disk.path.as_ref()) {
            let synced = File::open(path).and_then(|file| file.sync_data());
            synced.map_err(|source| MachineError::Io {
                doing: format!("making the disk {} durable", path.display()),
                source,
            })?;
        }
        Ok(())
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        if self.monitor.running() {
            return Err(MachineError::RunState { doing: "writing memory", needed: "paused" });
        }
        Ok(self.ram.write_page(gfn, content)?)
    }

    /// The guest's clocks go on from the state: [`ClockPolicy::JumpToNow`] is refused.
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        self.needs_pause("applying a state")?;
        if clock == ClockPolicy::JumpToNow {
            return Err(MachineError::Unsupported {
                what: "moving a guest's clock to the present".into(),
                help: "Restore with the clock standing still, and set it in the guest (`hwclock -s`, or NTP)"
                    .into(),
            });
        }
        let stream = self.shape.stream_of(state)?;
        let snapshot = self.check_disks(state)?;
        let begin = Instant::now();
        self.half_applied = true;
        if snapshot.is_none() {
            self.blocks.check(&mut self.monitor, &self.disks)?;
        }
        // Blocks that were written, and are not asked for any more, need no check.
        self.blocks = BlockWriter::default();
        if self.monitor.shut_down() {
            self.monitor.reset()?;
        }
        let (tag, nodes) = match snapshot {
            Some(tag) => (tag, self.disk_nodes()),
            None => (self.new_tag(), Vec::new()),
        };
        self.device_state.load(&mut self.monitor, &tag, &nodes, stream)?;
        self.half_applied = false;
        self.timing.load_us = microseconds(begin);
        Ok(())
    }

    /// What is not set aside any more is passed over.
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let mut disks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for disk in state.disks.iter().filter(|disk| !disk.reference.is_empty()) {
            if self.disks.iter().any(|own| own.node == disk.disk) {
                disks.entry(&disk.reference).or_default().push(&disk.disk);
            }
        }
        for (tag, devices) in disks {
            self.monitor.job("snapshot-delete", json!({ "tag": tag, "devices": devices }))?;
        }
        Ok(())
    }

    fn disks(&self) -> &[DiskShape] {
        &self.disk_shapes
    }

    /// Must be called while nothing makes or releases states; what it answers can be read at any time.
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let since = since.map(|state| state.reference.as_str());
        Ok(Box::new(self.disk(&at.disk)?.changes(&at.reference, since)?))
    }

    fn kept_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        let nodes = self.monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        let mut kept = Vec::new();
        for disk in &self.disks {
            let own = disk::snapshots(&nodes, &disk.node).filter(|tag| tag.starts_with(TAG_PREFIX));
            kept.extend(own.map(|tag| DiskState { disk: disk.node.clone(), reference: tag.to_owned() }));
        }
        Ok(kept)
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.needs_pause("writing a disk")?;
        let found = self.disks.iter().find(|own| own.node == disk);
        let Some(found) = found else { return self.disk(disk).map(drop) };
        self.blocks.write(&mut self.monitor, found, first, contents)
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
