use std::ops::Range;

use retrovisor_guest::{
    BlockContent, BlockRun, ClockPolicy, DiskShape, DiskState, MachineError, MachineIdentity, MachineState,
    MemoryLayout, RunContent, RunState, StateSection, VcpuRegisters,
};
use serde::{Deserialize, Serialize};

use super::confine::{Confinement, Limits};
use super::failure::{Failure, plain};
use crate::kvm::boot::Boot;
use crate::kvm::disk::DiskConfig;
use crate::kvm::net::status::NetStatus;
use retrovisor_guest::MacAddress;

/// The version of the messages below: both ends must have the same one.
pub(super) const VERSION: u32 = 6;
/// Bound on the body of a state in either direction: some eight vCPUs with the largest extended state, and devices.
pub(super) const STATE_BYTES_MAX: usize = 16 << 20;
/// A word of a bitmap: its number (4 bytes) and its 64 frames (8 bytes), little endian. Most words of a large memory
/// are empty.
pub(super) const DIRTY_WORD_BYTES: usize = 12;
/// Bound on the vCPUs, sections and disks of a state.
const PARTS_MAX: usize = 256;

/// A request to a worker. Each has one reply, before the next request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first message: start this machine. With the memfd of its memory, its two console logs, the bound socket of
    /// its channel if it has one, and a descriptor for each of its interfaces. Reply: `Welcome`.
    Launch(Box<Launch>),
    /// The first message to a running worker. Reply: `Welcome`, with the memfd of its memory.
    Hello { version: u32 },
    /// Reply: `State`.
    RunState,
    /// Reply: `Stopped`, with dirty frames and the state, because every further message would lengthen the pause.
    Pause,
    /// Reply: `Done`.
    Resume,
    /// Reply: `Done`, with the words of the bitmap of frames, by index, that are not zero: see [`DIRTY_WORD_BYTES`].
    TakeDirty,
    /// Reply: `Captured`, with the sections' bytes one after another.
    Capture,
    /// With the sections' bytes. Reply: `Done`.
    Apply { clock: ClockPolicy, state: StateHead },
    /// Reply: `Kept`.
    KeptDisks,
    /// Reply: `Done`.
    Release { disks: Vec<DiskState> },
    /// Starts to iterate over changed blocks. Reply: `Changes`.
    Changes { at: DiskState, since: Option<DiskState> },
    /// Reply: `Run`, with its bytes.
    NextRun { id: u64 },
    /// Starts to read the blocks of a state. Reply: `Blocks`.
    Blocks { at: DiskState },
    /// Reply: `Runs`, with the bytes of those with data.
    ReadBlocks { id: u64, ranges: Vec<Range<u64>>, data_max: u64 },
    /// Reply: `Done`, with the block.
    ReadBase { id: u64, block: u64 },
    /// Ends `Changes` or `Blocks`. Reply: `Done`.
    EndReading { id: u64 },
    /// With the bytes of the blocks that have data. Reply: `Done`.
    WriteBlocks { disk: String, first: u64, kinds: Vec<BlockKind> },
    /// Reply: `Done`.
    SetGenerationId { id: [u8; 16] },
    /// With a new descriptor for that interface. Reply: `Done`.
    Plug { interface: u32 },
    /// Reply: `Nets`.
    Nets,
    /// Keep running when the connection ends, from now on. Reply: `Done`.
    Detach,
}

/// A reply of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Failed(Failure),
    Welcome(Box<Welcome>),
    State {
        state: State,
        ended: Option<String>,
    },
    Captured(StateHead),
    /// With this many bytes of dirty frames, as for `TakeDirty`, and the sections of the state, if both could be read.
    Stopped {
        dirty_bytes: Option<u32>,
        state: Option<StateHead>,
    },
    Kept(Vec<DiskState>),
    Changes {
        id: u64,
    },
    Run(Option<Run>),
    Blocks {
        id: u64,
    },
    Runs(Vec<Run>),
    Nets(Vec<NetStatus>),
}

/// A [`BlockRun`] in a message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Run {
    first: u64,
    count: u64,
    kind: BlockKind,
}

impl Run {
    pub(super) fn of(run: &BlockRun) -> Self {
        let kind = match run.content {
            RunContent::Zero => BlockKind::Zero,
            RunContent::Base => BlockKind::Base,
            RunContent::Data => BlockKind::Data,
        };
        Self { first: run.first, count: run.count, kind }
    }

    pub(super) fn into_run(self) -> BlockRun {
        let content = match self.kind {
            BlockKind::Zero => RunContent::Zero,
            BlockKind::Base => RunContent::Base,
            BlockKind::Data => RunContent::Data,
        };
        BlockRun { first: self.first, count: self.count, content }
    }
}

/// The content of a block, or of those of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum BlockKind {
    Zero,
    Base,
    Data,
}

impl From<&BlockContent<'_>> for BlockKind {
    fn from(content: &BlockContent<'_>) -> Self {
        match content {
            BlockContent::Zero => Self::Zero,
            BlockContent::Base => Self::Base,
            BlockContent::Data(_) => Self::Data,
        }
    }
}

/// The configuration to start.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Launch {
    pub(super) version: u32,
    pub(super) name: String,
    pub(super) layout: MemoryLayout,
    pub(super) vcpus: u32,
    pub(super) boot: Boot,
    pub(super) disks: Vec<DiskConfig>,
    /// The addresses of its network interfaces, if given.
    pub(super) nets: Vec<Option<MacAddress>>,
    pub(super) channel: bool,
    /// Whether it does not boot, and waits for `Apply`.
    pub(super) awaits_state: bool,
    /// Whether the worker continues when the connection ends.
    pub(super) detached: bool,
    pub(super) limits: Limits,
}

/// The machine in a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) version: u32,
    pub(super) identity: MachineIdentity,
    pub(super) disks: Vec<DiskShape>,
    pub(super) confinement: Confinement,
}

/// [`RunState`] in a message.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum State {
    Running,
    Paused,
    PoweredOff,
    Panicked,
    Gone,
}

impl From<RunState> for State {
    fn from(state: RunState) -> Self {
        match state {
            RunState::Running => Self::Running,
            RunState::Paused => Self::Paused,
            RunState::PoweredOff => Self::PoweredOff,
            RunState::Panicked => Self::Panicked,
            RunState::Gone => Self::Gone,
        }
    }
}

impl From<State> for RunState {
    fn from(state: State) -> Self {
        match state {
            State::Running => Self::Running,
            State::Paused => Self::Paused,
            State::PoweredOff => Self::PoweredOff,
            State::Panicked => Self::Panicked,
            State::Gone => Self::Gone,
        }
    }
}

/// A [`MachineState`] without the bytes of its sections.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateHead {
    vcpus: Vec<VcpuRegisters>,
    /// Format and length in bytes.
    sections: Vec<(String, u32)>,
    disks: Vec<DiskState>,
}

impl StateHead {
    /// The head of a state, and the parts of its body.
    pub(super) fn split(state: &MachineState) -> Result<(Self, Vec<&[u8]>), MachineError> {
        let mut sections = Vec::with_capacity(state.sections.len());
        let mut total = 0;
        for section in &state.sections {
            total += section.bytes.len();
            sections.push((section.format.clone(), u32::try_from(section.bytes.len()).unwrap_or(u32::MAX)));
        }
        let parts = state.vcpus.len().max(sections.len()).max(state.disks.len());
        if total > STATE_BYTES_MAX || parts > PARTS_MAX {
            return Err(MachineError::Mismatch {
                what: "the size of the state".into(),
                expected: format!("{total} bytes in {parts} parts"),
                found: format!("at most {STATE_BYTES_MAX} in {PARTS_MAX}"),
            });
        }
        let head = Self { vcpus: state.vcpus.clone(), sections, disks: state.disks.clone() };
        Ok((head, state.sections.iter().map(|section| &section.bytes[..]).collect()))
    }

    /// Joins the state that [`Self::split`] took apart; `None` when head and body do not match.
    pub(super) fn join(self, mut body: &[u8]) -> Option<MachineState> {
        if self.vcpus.len().max(self.sections.len()).max(self.disks.len()) > PARTS_MAX {
            return None;
        }
        let mut sections = Vec::with_capacity(self.sections.len());
        for (format, length) in self.sections {
            let (bytes, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
            sections.push(StateSection { format: plain(&format), bytes: bytes.to_vec() });
            body = rest;
        }
        body.is_empty().then_some(MachineState { vcpus: self.vcpus, sections, disks: self.disks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_together_again_and_one_that_does_not_fit_is_refused() {
        let section =
            |format: &str, bytes: &[u8]| StateSection { format: format.into(), bytes: bytes.into() };
        let state = MachineState {
            vcpus: vec![VcpuRegisters { rip: 5, ..VcpuRegisters::default() }],
            sections: vec![section("a/1", b"abc"), section("b/1", b""), section("c/1", b"d")],
            disks: vec![DiskState::unchanged("d0")],
        };
        let (head, pieces) = StateHead::split(&state).unwrap();
        let body = pieces.concat();
        assert_eq!(head.join(&body), Some(state.clone()));
        for wrong in [&body[..3], b"abcde"] {
            assert_eq!(StateHead::split(&state).unwrap().0.join(wrong), None);
        }
        let (mut head, _) = StateHead::split(&state).unwrap();
        head.sections[0].1 = u32::MAX;
        assert_eq!(head.join(&body), None);
    }
}
