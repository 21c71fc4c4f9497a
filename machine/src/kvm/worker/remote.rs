mod opening;
mod pause_reply;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{
    BlockContent, Capabilities, ClockPolicy, DiskBlocks, DiskChanges, DiskIo, DiskShape, DiskState, Gfn,
    Machine, MachineError, MachineIdentity, MachineState, MemoryIo, MemoryView, PageContent, PageSet,
    ProcessIdentity, RunState, StateIo,
};

use super::blocks::RemoteBlocks;
use super::changes::RemoteChanges;
use super::confine::Confinement;
use super::failure::plain;
use super::link::Link as WorkerLink;
use super::message::{Answer, BlockKind, DIRTY_WORD_BYTES, Request, STATE_BYTES_MAX, StateHead};
use super::runtime::RuntimeDir;
use crate::kvm::boot::GENERATION_ID;
use crate::kvm::machine::generation_id;
use crate::kvm::net::link::{Link, NetBackend};
use crate::kvm::net::status::NetStatus;
use crate::ram::Ram;
use pause_reply::PauseReply;

/// Blocks written with one message.
const RUN_BLOCKS: usize = 256;
/// Bound on the lists in a worker's report about its confinement.
const LINES_MAX: usize = 32;

/// A microVM in a worker process.
///
/// Guest memory is mapped in this process, too, and read and written directly. If a worker ends, does not reply in time
/// or sends an invalid reply, the machine is [`RunState::Gone`] and the worker is ended.
pub struct RemoteMachine {
    identity: MachineIdentity,
    ram: Ram,
    link: Arc<Mutex<WorkerLink>>,
    disks: Vec<DiskShape>,
    runtime: RuntimeDir,
    confinement: Confinement,
    detached: bool,
    /// Whether the vCPUs are stopped, according to the requests of this process.
    paused: bool,
    /// Dirty frames and the state, from the reply to the last pause.
    pause_reply: PauseReply,
    /// Why the guest ended, according to the worker's last reply.
    ended: Option<String>,
    /// The next `take_dirty` returns every frame.
    reports_all: bool,
}

impl RemoteMachine {
    /// The socket of the guest's serial port.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.runtime.console()
    }

    /// The socket of its control channel, the guest's second console, if it has one: a client gets the guest's output
    /// from the time of its connection on.
    #[must_use]
    pub fn channel(&self) -> Option<PathBuf> {
        Some(self.runtime.channel()).filter(|path| path.exists())
    }

    /// The file with the guest's output on its serial port.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.runtime.console_log()
    }

    /// The confinement of the worker, according to its own report.
    #[must_use]
    pub fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// The worker's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.link().process().pid()
    }

    /// The worker's process.
    pub(in crate::kvm) fn process_identity(&self) -> ProcessIdentity {
        self.link().process().identity().clone()
    }

    /// Why the guest ended, or the worker was lost, as far as known.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.link().lost().map(str::to_owned).or_else(|| self.ended.clone())
    }

    /// From now on the worker continues when this process ends or drops the machine.
    pub fn detach(&mut self) -> Result<(), MachineError> {
        self.ask("detaching", &Request::Detach, &[], 0, |answer, body| done(&answer, body))?;
        self.link().process().keep();
        self.detached = true;
        Ok(())
    }

    /// The identifier by which a guest detects that it shares its past with another guest.
    pub fn generation_id(&self) -> Result<[u8; 16], MachineError> {
        let mut id = [0; 16];
        self.ram.read(GENERATION_ID, &mut id)?;
        Ok(id)
    }

    /// Sets another identifier and notifies the guest, like [`crate::kvm::KvmMachine::set_generation_id`]: needs a
    /// paused machine, and must follow [`StateIo::apply_state`], which restores the old one.
    pub fn set_generation_id(&mut self, id: [u8; 16]) -> Result<(), MachineError> {
        let doing = "changing the generation identifier";
        self.discard_pause_reply()?;
        self.ask(doing, &Request::SetGenerationId { id }, &[], 0, |answer, body| done(&answer, body))
    }

    /// The status of its network interfaces, in order.
    pub fn nets(&self) -> Result<Vec<NetStatus>, MachineError> {
        self.ask("asking for its networks", &Request::Nets, &[], 0, |answer, _| match answer {
            Answer::Nets(nets) if nets.len() <= LINES_MAX => Some(nets),
            _ => None,
        })
    }

    /// Connects the network interface number `index` to something else, which is opened here; the guest sees its link
    /// come up, if it was down.
    pub fn plug(&mut self, index: usize, backend: &NetBackend) -> Result<(), MachineError> {
        let link = Link::open(backend)?.into_fd();
        self.discard_pause_reply()?;
        let request = Request::Plug { interface: u32::try_from(index).unwrap_or(u32::MAX) };
        let with: (&[&[u8]], _) = (&[], &[link.as_fd()][..]);
        self.link().ask_with("plugging a network in", &request, with, 0, |answer, body| done(&answer, body))
    }

    /// Sets an identifier that no other machine has: see [`RemoteMachine::set_generation_id`].
    pub fn renew_generation_id(&mut self) -> Result<(), MachineError> {
        self.set_generation_id(generation_id()?)
    }

    /// Ends the worker, also a detached one. Logs stay in the runtime directory.
    pub fn quit(self) {
        self.link().process().kill();
        self.runtime.remove_sockets();
    }

    /// Discards the data of the last pause: they are out of date, or are requested again.
    fn discard_pause_reply(&mut self) -> Result<(), MachineError> {
        match self.pause_reply.discard() {
            Some(unused) => self.release_state(&unused),
            None => Ok(()),
        }
    }

    /// From a reply in which every frame is dirty.
    fn dirty_bytes_max(&self) -> usize {
        let words = usize::try_from(self.identity.layout.pages().div_ceil(64)).unwrap_or(usize::MAX);
        words.saturating_mul(DIRTY_WORD_BYTES)
    }

    fn link(&self) -> MutexGuard<'_, WorkerLink> {
        // The link is consistent after every line, also after a panic.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T>(
        &self,
        doing: &'static str,
        request: &Request,
        body: &[&[u8]],
        body_bytes_max: usize,
        use_answer: impl FnOnce(Answer, &[u8]) -> Option<T>,
    ) -> Result<T, MachineError> {
        self.link().ask(doing, request, body, body_bytes_max, use_answer)
    }
}

impl Machine for RemoteMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { clock_jump: true, disk_blocks: true, hot_plug: false, line_writes: true }
    }

    fn run_state(&mut self) -> RunState {
        self.link().check_process();
        let state =
            self.ask("asking for its run state", &Request::RunState, &[], 0, |answer, _| match answer {
                Answer::State { state, ended } => Some((RunState::from(state), ended)),
                _ => None,
            });
        match state {
            Ok((state, ended)) => {
                self.ended = ended.as_deref().map(plain);
                state
            }
            Err(_) => RunState::Gone,
        }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.discard_pause_reply()?;
        let (bytes, vcpus) = (self.dirty_bytes_max(), self.identity.vcpus as usize);
        let (link, reply) = (Arc::clone(&self.link), &mut self.pause_reply);
        let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
        link.ask("pausing", &Request::Pause, &[], bytes.saturating_add(STATE_BYTES_MAX), |answer, body| {
            let Answer::Stopped { dirty_bytes, state } = answer else { return None };
            reply.store(dirty_bytes, state, body, vcpus)
        })?;
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.discard_pause_reply()?;
        self.ask("resuming", &Request::Resume, &[], 0, |answer, body| done(&answer, body))?;
        self.paused = false;
        Ok(())
    }
}

impl MemoryIo for RemoteMachine {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let bytes = self.dirty_bytes_max();
        if !self.pause_reply.take_dirty(into) {
            self.ask("looking for dirty pages", &Request::TakeDirty, &[], bytes, |answer, body| {
                if matches!(answer, Answer::Done) { insert(into, body) } else { None }
            })?;
        }
        if self.reports_all {
            into.union(&PageSet::full(&self.identity.layout));
            self.reports_all = false;
        }
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.ram
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        if !self.paused {
            return Err(MachineError::RunState { doing: "writing memory", needed: "paused" });
        }
        Ok(self.ram.write_page(gfn, content)?)
    }

    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        if !self.paused {
            return Err(MachineError::RunState { doing: "writing memory", needed: "paused" });
        }
        Ok(self.ram.write_lines(gfn, content, lines)?)
    }
}

impl StateIo for RemoteMachine {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        if let Some(state) = self.pause_reply.take_state() {
            return Ok(state);
        }
        let vcpus = self.identity.vcpus as usize;
        self.ask("capturing the state", &Request::Capture, &[], STATE_BYTES_MAX, |answer, body| {
            let Answer::Captured(head) = answer else { return None };
            head.join(body).filter(|state| state.vcpus.len() == vcpus)
        })
    }

    fn sync_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        let (head, pieces) = StateHead::split(state)?;
        self.discard_pause_reply()?;
        self.ask(
            "putting a state back",
            &Request::Apply { clock, state: head },
            &pieces,
            0,
            |answer, body| done(&answer, body),
        )
    }

    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        if state.disks.is_empty() {
            return Ok(());
        }
        let request = Request::Release { disks: state.disks.clone() };
        self.ask("releasing a state", &request, &[], 0, |answer, body| done(&answer, body))
    }
}

impl DiskIo for RemoteMachine {
    fn disks(&self) -> &[DiskShape] {
        &self.disks
    }

    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let request = Request::Changes { at: at.clone(), since: since.cloned() };
        let id = self.ask("looking for changed blocks", &request, &[], 0, |answer, _| match answer {
            Answer::Changes { id } => Some(id),
            _ => None,
        })?;
        let blocks = self.disks.iter().find(|disk| disk.name == at.disk).map_or(0, DiskShape::blocks);
        Ok(Box::new(RemoteChanges::new(Arc::clone(&self.link), id, blocks)))
    }

    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        let request = Request::Blocks { at: at.clone() };
        let id = self.ask("looking for a state's blocks", &request, &[], 0, |answer, _| match answer {
            Answer::Blocks { id } => Some(id),
            _ => None,
        })?;
        Ok(Box::new(RemoteBlocks::new(Arc::clone(&self.link), id)))
    }

    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        if self.disks.is_empty() {
            return Ok(Vec::new());
        }
        self.ask("asking what disks keep", &Request::KeptDisks, &[], 0, |answer, _| match answer {
            Answer::Kept(kept) => Some(kept),
            _ => None,
        })
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.discard_pause_reply()?;
        for (number, contents) in (0..).zip(contents.chunks(RUN_BLOCKS)) {
            let kinds = contents.iter().map(BlockKind::from).collect();
            let pages: Vec<&[u8]> = contents
                .iter()
                .filter_map(|content| match content {
                    BlockContent::Data(page) => Some(&page[..]),
                    BlockContent::Zero | BlockContent::Base => None,
                })
                .collect();
            let first = first.saturating_add(number * RUN_BLOCKS as u64);
            let request = Request::WriteBlocks { disk: disk.to_owned(), first, kinds };
            self.ask("writing a disk", &request, &pages, 0, |answer, body| done(&answer, body))?;
        }
        Ok(())
    }
}

impl Drop for RemoteMachine {
    fn drop(&mut self) {
        // A guest that ended cannot continue.
        let mut link = self.link();
        if !self.detached || link.lost().is_some() || self.ended.is_some() {
            link.process().kill();
            self.runtime.remove_sockets();
        }
    }
}

/// Adds dirty frames as they are sent; `None` when the last is cut off.
fn insert(into: &mut PageSet, dirty: &[u8]) -> Option<()> {
    let (words, rest) = dirty.as_chunks::<DIRTY_WORD_BYTES>();
    for word in words {
        let (number, frames) = (word.first_chunk::<4>()?, word.last_chunk::<8>()?);
        // Indexes past the end are ignored.
        let at = usize::try_from(u32::from_le_bytes(*number)).ok()?;
        into.insert_word(at, u64::from_le_bytes(*frames));
    }
    rest.is_empty().then_some(())
}

fn done(answer: &Answer, body: &[u8]) -> Option<()> {
    (matches!(answer, Answer::Done) && body.is_empty()).then_some(())
}
