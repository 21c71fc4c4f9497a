use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use retrovisor_guest::{
    BLOCK_SIZE, BlockContent, DiskIo as _, Machine as _, MachineError, MachineState, MemoryIo as _, PageSet,
    StateIo as _,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Uid;

use super::channel::{Channel, Received};
use super::confine::{self, Confinement};
use super::console::{self, Ends};
use super::console_log::{ConsoleLog, LOG_BYTES_MAX};
use super::failure::Failure;
use super::message::{Answer, BlockKind, Launch, Request, STATE_BYTES_MAX, StateHead, VERSION, Welcome};
use super::peer::may;
use super::readers::Readers;
use crate::kvm::config::{KvmConfig, MemorySource, NetConfig};
use crate::kvm::machine::KvmMachine;
use crate::kvm::net::link::NetBackend;

/// Bound on pending connections to the control channel.
const BACKLOG: i32 = 8;

/// Time limit for the first connection: the process that starts a worker connects at once.
const FIRST_PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// Starts the machine that the first connection names, and serves it and later connections, one at a time.
pub(super) fn serve(
    control: &UnixListener,
    console: UnixListener,
    owner: Uid,
    confinement: Confinement,
) -> Result<(), MachineError> {
    let failed =
        |source| MachineError::Io { doing: "talking to the client that manages the machine".into(), source };
    if !comes(control).map_err(failed)? {
        // The process that started this one was killed meanwhile.
        return Ok(());
    }
    let mut channel = next(control, owner).map_err(failed)?;
    let Some(first) = channel.receive(0).map_err(failed)? else { return Ok(()) };
    let mut worker = match Worker::launch(first, console, owner, confinement) {
        Ok(worker) => worker,
        Err(error) => {
            let text = error.to_string();
            channel.send(&Answer::Failed(error.into()), &[], &[]).map_err(failed)?;
            return Err(MachineError::Driver { doing: "starting the machine".into(), message: text });
        }
    };
    let mut greeted = worker.welcome(&mut channel);
    loop {
        if let Err(error) = greeted.and_then(|()| worker.talk(&mut channel)) {
            tracing::warn!(%error, "a connection failed");
        }
        if !worker.detached {
            return Ok(());
        }
        channel = next(control, owner).map_err(failed)?;
        greeted = Ok(());
    }
}

/// Whether a client connects in time.
fn comes(listener: &UnixListener) -> io::Result<bool> {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut fds, Some(&FIRST_PATIENCE)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// The next connection of a client that may connect.
fn next(listener: &UnixListener, owner: Uid) -> io::Result<Channel> {
    loop {
        let (stream, _) = listener.accept()?;
        if may(&stream, owner) {
            return Channel::new(stream, None);
        }
    }
}

/// Makes a listener of a bound socket.
fn listening(socket: OwnedFd) -> Result<UnixListener, MachineError> {
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| MachineError::Io {
        doing: "listening for the control channel".into(),
        source: errno.into(),
    })?;
    Ok(UnixListener::from(socket))
}

struct Worker {
    machine: KvmMachine,
    memory: Arc<File>,
    confinement: Confinement,
    /// Whether the machine outlives the connection.
    detached: bool,
    /// Dirty frames that were taken and not sent yet.
    dirty: PageSet,
    readers: Readers,
}

impl Worker {
    fn launch(
        first: Received<Request>,
        console: UnixListener,
        owner: Uid,
        mut confinement: Confinement,
    ) -> Result<Self, MachineError> {
        let refused = |message: &str| MachineError::Driver {
            doing: "starting a worker".into(),
            message: message.into(),
        };
        let Request::Launch(launch) = first.head else {
            return Err(refused("the first message does not say what to start"));
        };
        let Launch {
            version,
            name,
            layout,
            vcpus,
            boot,
            disks,
            nets,
            channel,
            awaits_state,
            detached,
            limits,
        } = *launch;
        if version != VERSION {
            return Err(refused("the worker is of another version"));
        }
        if first.fds.len() != 3 + usize::from(channel) + nets.len() {
            return Err(refused("descriptors are missing"));
        }
        let mut fds = first.fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| refused("a descriptor is missing"));
        let memory = Arc::new(File::from(next()?));
        let log = ConsoleLog::new(next()?.into(), next()?.into(), LOG_BYTES_MAX);
        let log =
            log.map_err(|source| MachineError::Io { doing: "opening the console's log".into(), source })?;
        let channel_socket = channel.then(|| next().and_then(listening)).transpose()?;
        let nets =
            nets.into_iter().map(|mac| Ok(NetConfig { backend: NetBackend::Open(Arc::new(next()?)), mac }));
        let nets = nets.collect::<Result<_, MachineError>>()?;
        let dirty = PageSet::empty(&layout);
        let file = Arc::clone(&memory);
        let source = if awaits_state { MemorySource::Awaited(file) } else { MemorySource::Shared(file) };
        let config =
            KvmConfig { name, layout, memory: source, vcpus, boot, disks, nets, channel, paused: true };
        let machine = KvmMachine::launch_after(&config, || confine::late(limits, &mut confinement))?;
        let (output, input) = (machine.console_output(), machine.console_input());
        console::keep(log, output.clone())?;
        console::serve("console", console, owner, Ends { output, input, from_the_first: true })?;
        if let (Some(socket), Some((input, output))) = (channel_socket, machine.channel()) {
            console::serve("channel", socket, owner, Ends { output, input, from_the_first: false })?;
        }
        Ok(Self { machine, memory, confinement, detached, dirty, readers: Readers::default() })
    }

    fn welcome(&self, channel: &mut Channel) -> io::Result<()> {
        let welcome = Welcome {
            version: VERSION,
            identity: self.machine.identity().clone(),
            disks: self.machine.disks().to_vec(),
            confinement: self.confinement.clone(),
        };
        channel.send(&Answer::Welcome(Box::new(welcome)), &[], &[self.memory.as_fd()])
    }

    /// Replies until the other end closes the connection.
    fn talk(&mut self, channel: &mut Channel) -> io::Result<()> {
        // Those of an earlier connection.
        self.readers.clear();
        while let Some(request) = channel.receive::<Request>(STATE_BYTES_MAX)? {
            let outcome = match &request.head {
                Request::Hello { .. } => {
                    self.welcome(channel)?;
                    continue;
                }
                Request::TakeDirty => match self.machine.take_dirty(&mut self.dirty) {
                    Ok(()) => {
                        channel.send(&Answer::Done, &[&self.dirty_words()], &[])?;
                        self.dirty.clear();
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Request::Capture => match self.machine.capture_state() {
                    Ok(state) => match StateHead::split(&state) {
                        Ok((head, pieces)) => {
                            channel.send(&Answer::Captured(head), &pieces, &[])?;
                            continue;
                        }
                        Err(error) => Err(error),
                    },
                    Err(error) => Err(error),
                },
                Request::RunState => {
                    Ok(Answer::State { state: self.machine.run_state().into(), ended: self.machine.ended() })
                }
                Request::Pause => match self.machine.pause() {
                    Ok(()) => {
                        self.stopped(channel)?;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Request::Resume => self.machine.resume().map(|()| Answer::Done),
                Request::NextRun { id } => match self.readers.next_run(*id) {
                    Ok((run, bytes)) => {
                        channel.send(&Answer::Run(run), &[bytes], &[])?;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Request::KeptDisks => self.machine.retained_disks().map(Answer::Kept),
                Request::Release { disks } => {
                    let state = MachineState { disks: disks.clone(), ..MachineState::default() };
                    self.machine.release_state(&state).map(|()| Answer::Done)
                }
                Request::Changes { at, since } => {
                    let changes = self.machine.disk_changes(at, since.as_ref());
                    changes.map(|changes| Answer::Changes { id: self.readers.add_changes(changes) })
                }
                Request::Blocks { at } => {
                    let blocks = self.machine.disk_blocks(at);
                    blocks.map(|blocks| Answer::Blocks { id: self.readers.add_blocks(blocks) })
                }
                Request::ReadBlocks { id, ranges, data_max } => {
                    match self.readers.read_blocks(*id, ranges, *data_max) {
                        Ok((runs, bytes)) => {
                            channel.send(&Answer::Runs(runs), &[bytes], &[])?;
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
                Request::ReadBase { id, block } => match self.readers.read_base(*id, *block) {
                    Ok(page) => {
                        channel.send(&Answer::Done, &[&page], &[])?;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Request::EndReading { id } => {
                    self.readers.end(*id);
                    Ok(Answer::Done)
                }
                Request::WriteBlocks { disk, first, kinds } => {
                    let body = channel.bytes(request.body);
                    self.write_blocks(disk, *first, kinds, body).map(|()| Answer::Done)
                }
                Request::SetGenerationId { id } => self.machine.set_generation_id(*id).map(|()| Answer::Done),
                Request::Nets => Ok(Answer::Nets(self.machine.nets())),
                Request::Plug { interface } => self.plug(*interface, request.fds).map(|()| Answer::Done),
                Request::Detach => {
                    self.detached = true;
                    Ok(Answer::Done)
                }
                Request::Apply { .. } => self.apply(channel, request).map(|()| Answer::Done),
                Request::Launch(_) => Err(MachineError::Driver {
                    doing: "starting a machine".into(),
                    message: "one is here already".into(),
                }),
            };
            let answer = outcome.unwrap_or_else(|error| Answer::Failed(Failure::from(error)));
            channel.send(&answer, &[], &[])?;
        }
        Ok(())
    }

    /// Replies to `Pause`, with the dirty frames and the state. A part that could not be read is left out; the client
    /// requests it again and gets the error then.
    fn stopped(&mut self, channel: &mut Channel) -> io::Result<()> {
        let dirty = self.machine.take_dirty(&mut self.dirty).ok().map(|()| self.dirty_words());
        let dirty_bytes = dirty.as_ref().and_then(|words| u32::try_from(words.len()).ok());
        let state = self.machine.capture_state().ok();
        let mut pieces = vec![dirty.as_deref().unwrap_or_default()];
        let mut head = None;
        if let Some(state) = &state {
            match StateHead::split(state) {
                Ok((split, sections)) => {
                    head = Some(split);
                    pieces.extend(sections);
                }
                // It is too large: the client gets the error when it requests the state.
                Err(_) => self.machine.release_state(state).unwrap_or_default(),
            }
        }
        channel.send(&Answer::Stopped { dirty_bytes, state: head }, &pieces, &[])?;
        if dirty_bytes.is_some() {
            self.dirty.clear();
        }
        Ok(())
    }

    /// The dirty frames, in the form of a message.
    fn dirty_words(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, word) in (0_u32..).zip(self.dirty.words()).filter(|(_, word)| **word != 0) {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        kinds: &[BlockKind],
        body: &[u8],
    ) -> Result<(), MachineError> {
        let mut pages = body.as_chunks::<BLOCK_SIZE>().0.iter();
        let contents = kinds.iter().map(|kind| match kind {
            BlockKind::Zero => Some(BlockContent::Zero),
            BlockKind::Base => Some(BlockContent::Base),
            BlockKind::Data => pages.next().map(BlockContent::Data),
        });
        let contents = contents.collect::<Option<Vec<_>>>().ok_or_else(|| MachineError::Driver {
            doing: "writing a disk".into(),
            message: "blocks are missing".into(),
        })?;
        self.machine.write_blocks(disk, first, &contents)
    }

    fn plug(&mut self, interface: u32, fds: Vec<OwnedFd>) -> Result<(), MachineError> {
        let link = fds.into_iter().next().ok_or_else(|| MachineError::Driver {
            doing: "plugging a network in".into(),
            message: "its descriptor is missing".into(),
        })?;
        let index = usize::try_from(interface).unwrap_or(usize::MAX);
        self.machine.plug(index, &NetBackend::Open(Arc::new(link)))
    }

    fn apply(&mut self, channel: &Channel, request: Received<Request>) -> Result<(), MachineError> {
        let body = channel.bytes(request.body);
        let Request::Apply { clock, state } = request.head else { return Ok(()) };
        let state = state.join(body).ok_or_else(|| MachineError::Driver {
            doing: "putting a state back".into(),
            message: "its parts do not fit together".into(),
        })?;
        self.machine.apply_state(&state, clock)
    }
}
