use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use retrovisor_guest::{Machine as _, MachineError, PageSet};
use rustix::process::Uid;

use super::channel::{Channel, Received};
use super::confine::{self, Confinement};
use super::console;
use super::failure::Failure;
use super::message::{Answer, Launch, Request, STATE_BYTES_MAX, StateHead, VERSION, Welcome};
use super::peer::may;
use crate::kvm::config::{KvmConfig, MemorySource};
use crate::kvm::machine::KvmMachine;

/// Starts the machine that the first connection names, and serves it and those after it, one at a time.
pub(super) fn serve(
    control: &UnixListener,
    console: UnixListener,
    owner: Uid,
    confinement: Confinement,
) -> Result<(), MachineError> {
    let failed =
        |source| MachineError::Io { doing: "talking to whoever cares for the machine".into(), source };
    let mut channel = next(control, owner).map_err(failed)?;
    let Some(first) = channel.receive(0).map_err(failed)? else { return Ok(()) };
    let (mut worker, detached) = match Worker::launch(first, console, owner, confinement) {
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
            tracing::warn!(%error, "a connection ended badly");
        }
        if !detached {
            return Ok(());
        }
        channel = next(control, owner).map_err(failed)?;
        greeted = Ok(());
    }
}

/// The next connection of somebody who may.
fn next(listener: &UnixListener, owner: Uid) -> io::Result<Channel> {
    loop {
        let (stream, _) = listener.accept()?;
        if may(&stream, owner) {
            return Channel::new(stream, None);
        }
    }
}

struct Worker {
    machine: KvmMachine,
    memory: Arc<File>,
    confinement: Confinement,
    /// What was found dirty and not told yet.
    dirty: PageSet,
}

impl Worker {
    /// The machine, and whether it outlives the connection.
    fn launch(
        first: Received<Request>,
        console: UnixListener,
        owner: Uid,
        mut confinement: Confinement,
    ) -> Result<(Self, bool), MachineError> {
        let refused = |message: &str| MachineError::Driver {
            doing: "starting a worker".into(),
            message: message.into(),
        };
        let Request::Launch(launch) = first.head else {
            return Err(refused("the first message does not say what to start"));
        };
        let Launch { version, name, layout, vcpus, boot, detached, limits } = *launch;
        if version != VERSION {
            return Err(refused("the worker is of another version"));
        }
        let [memory, log] = <[_; 2]>::try_from(first.fds).map_err(|_| refused("files are missing"))?;
        let (memory, log) = (Arc::new(File::from(memory)), File::from(log));
        let dirty = PageSet::empty(&layout);
        let source = MemorySource::Shared(Arc::clone(&memory));
        let config = KvmConfig {
            name,
            layout,
            memory: source,
            vcpus,
            boot,
            disks: Vec::new(),
            nets: Vec::new(),
            channel: false,
            paused: true,
        };
        let machine = KvmMachine::launch_after(&config, || confine::late(limits, &mut confinement))?;
        console::serve(console, owner, log, &machine)?;
        Ok((Self { machine, memory, confinement, dirty }, detached))
    }

    fn welcome(&self, channel: &mut Channel) -> io::Result<()> {
        let welcome = Welcome {
            version: VERSION,
            identity: self.machine.identity().clone(),
            confinement: self.confinement.clone(),
        };
        channel.send(&Answer::Welcome(Box::new(welcome)), &[], &[self.memory.as_fd()])
    }

    /// Answers until the other end goes away.
    fn talk(&mut self, channel: &mut Channel) -> io::Result<()> {
        while let Some(request) = channel.receive::<Request>(STATE_BYTES_MAX)? {
            let outcome = match &request.head {
                Request::Hello { .. } => {
                    self.welcome(channel)?;
                    continue;
                }
                Request::TakeDirty => match self.machine.take_dirty(&mut self.dirty) {
                    Ok(()) => {
                        let bitmap: Vec<u8> =
                            self.dirty.words().iter().flat_map(|word| word.to_le_bytes()).collect();
                        channel.send(&Answer::Done, &[&bitmap], &[])?;
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
                Request::Pause => self.machine.pause().map(|()| Answer::Done),
                Request::Resume => self.machine.resume().map(|()| Answer::Done),
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
