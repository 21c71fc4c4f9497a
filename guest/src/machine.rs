use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    BlockContent, DiskChanges, DiskShape, DiskState, Gfn, MachineError, MachineState, MemoryLayout,
    MemoryView, PageContent, PageSet,
};

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM with hardware virtualization.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// Nothing: a memory-only machine.
    None,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::None => "none",
        })
    }
}

/// What a state is checked against before it is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIdentity {
    /// The name given by the user.
    pub name: String,
    /// The driver: `qemu`, `kvm`, `memory`.
    pub driver: String,
    /// The driver's version (QEMU's, or our own).
    pub version: String,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Where its memory lies.
    pub layout: MemoryLayout,
}

/// Whether the guest's vCPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// vCPUs stand still and devices are quiet.
    Paused,
    /// The guest shut down, crashed or its process ended.
    Gone,
}

/// What the guest's clocks do over the time that a restore skips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockPolicy {
    /// The guest's time goes on from the instant of the checkpoint.
    #[default]
    StandStill,
    /// The guest's wall clock jumps to the host's.
    JumpToNow,
}

/// One virtual machine under care. A driver implements it; the capture engine drives it.
///
/// Order of a checkpoint: `pause` → `take_dirty` → copy pages through `memory` → `capture_state` → `resume` →
/// `sync_state`.
/// Order of a rollback: `pause` → `write_page` for every page that differs → `apply_state` → `resume`.
/// Disks go back with the state as long as the driver keeps their contents (`keeps_disks`); from then on their blocks
/// are written, like pages: `write_blocks` → `apply_state` with [`DiskState::as_it_is`].
/// A method that fails leaves the machine as it was, unless its comment says otherwise.
pub trait Machine: Send {
    /// Name, driver, version, layout: constant while the machine lives.
    fn identity(&self) -> &MachineIdentity;

    /// Whether the guest runs, as far as the driver knows now.
    fn run_state(&mut self) -> RunState;

    /// Stops all vCPUs and finishes or parks device work. Does nothing when already paused.
    fn pause(&mut self) -> Result<(), MachineError>;

    /// Lets the guest run on. Does nothing when already running.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// Adds to `into` every frame that anybody (vCPUs or devices) may have written since the last call, and
    /// starts anew. May report too many frames, never too few. The first call reports every frame.
    /// May be called while the guest runs (pre-copy): what is written meanwhile is in the next answer.
    /// Frames written by [`Machine::write_page`] need not be reported.
    /// On an error nothing is lost: the next call reports those frames again.
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// The guest's memory as it is now. Stable only while paused.
    fn memory(&self) -> &dyn MemoryView;

    /// Everything but memory at this instant. Needs the machine paused.
    /// What the driver had to set aside for it (disk snapshots) stays until [`Machine::release_state`].
    fn capture_state(&mut self) -> Result<MachineState, MachineError>;

    /// Makes what the driver set aside for a captured state (disk snapshots) durable on the host, so that a checkpoint
    /// may be committed that needs it. Called while the guest runs, where that can be.
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// Writes one frame. Needs the machine paused; takes effect for the guest at the next `apply_state`
    /// (a translator may hold on to old code until then) or, for data, at the next `resume`.
    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError>;

    /// As [`Machine::write_page`], for a frame that reads like `content` already but for some lines: those are written,
    /// line `n` (64 bytes) where bit `n` of `lines` is set. A driver may write all of it.
    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        let _ = lines;
        self.write_page(gfn, content)
    }

    /// Puts vCPUs, devices and disks back. Needs the machine paused and the memory of that instant written before.
    /// Checks the state against the identity first and refuses what does not fit. When it fails after that,
    /// the machine stays paused and must be given another state before it may run.
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError>;

    /// Lets go of what the driver set aside for a state that will not be used any more.
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// The writable disks whose contents can be read and written block by block: constant while the machine lives.
    /// Without any, disks go back by [`Machine::apply_state`] alone.
    fn disks(&self) -> &[DiskShape] {
        &[]
    }

    /// The blocks of a disk that may differ between two captured states; without `since`, between `at` and the base
    /// image. Costs the guest nothing: what is read does not change any more.
    /// `since` must be kept, too ([`Machine::kept_disks`]).
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let _ = since;
        Err(no_blocks(&at.disk))
    }

    /// The disks' contents that are set aside, of all states that were captured and not released, also by earlier
    /// processes; in the order of their taking for each disk.
    fn kept_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        Ok(Vec::new())
    }

    /// Whether the contents that a state's disks are to have are set aside, so that [`Machine::apply_state`] can put
    /// them back. `true` for a state without disks.
    fn keeps_disks(&mut self, state: &MachineState) -> Result<bool, MachineError> {
        if state.disks.is_empty() {
            return Ok(true);
        }
        let kept = self.kept_disks()?;
        Ok(state.disks.iter().all(|disk| kept.contains(disk)))
    }

    /// Writes blocks in a row, from `first` on. Needs the machine paused; is in effect, and checked, once
    /// [`Machine::apply_state`] was called with [`DiskState::as_it_is`].
    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let _ = (first, contents);
        Err(no_blocks(disk))
    }
}

fn no_blocks(disk: &str) -> MachineError {
    MachineError::Unsupported {
        what: format!("reading and writing the blocks of disk {disk}"),
        help: "Its contents go back only as long as the driver keeps them".into(),
    }
}
