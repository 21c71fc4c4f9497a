use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use retrovisor_guest::{
    ClockPolicy, Gfn, Machine, MachineError, MachineIdentity, MachineState, MemoryView, PageContent, PageSet,
    RunState,
};

use super::channel::Channel;
use super::confine::{Confinement, Limits};
use super::failure::plain;
use super::launch::{connect, connect_soon, log_file, memory_file, sealed, start};
use super::message::{Answer, Launch, Request, STATE_BYTES_MAX, StateHead, VERSION, Welcome};
use super::runtime::RuntimeDir;
use crate::kvm::config::KvmConfig;
use crate::process::Process;
use crate::ram::Ram;

/// A worker that takes longer to answer is taken for dead, and ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Reading a kernel and an initial RAM file system from a slow disk is part of a start.
const START_PATIENCE: Duration = Duration::from_mins(2);
/// Longest lists of what a worker says about its confinement.
const LINES_MAX: usize = 32;

/// Which machine to start in a worker process, and how.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The machine. Its memory begins fresh, whatever this says.
    pub machine: KvmConfig,
    /// The program that becomes the worker: it calls [`super::worker_process`] first thing.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where the machine has its sockets and logs. For the owner alone.
    pub runtime_dir: PathBuf,
    /// Whether the worker lives on when this process ends or lets go of the machine.
    pub detached: bool,
    /// What the worker is left with.
    pub limits: Limits,
}

/// A microVM in a worker process.
///
/// Guest memory is mapped here, too, and read and written directly. A worker that dies, does not answer in time or
/// answers nonsense makes the machine [`RunState::Gone`]; what is left of it is ended.
pub struct RemoteMachine {
    identity: MachineIdentity,
    ram: Ram,
    channel: Channel,
    process: Process,
    runtime: RuntimeDir,
    confinement: Confinement,
    detached: bool,
    /// Whether the vCPUs stand still, as far as was asked for here.
    paused: bool,
    /// Why the worker can be asked nothing any more.
    lost: Option<String>,
    /// Why the guest ended by itself, as the worker said last.
    ended: Option<String>,
    /// Nobody has asked here yet: the whole memory counts as dirty.
    unseen: bool,
}

impl RemoteMachine {
    /// Starts a worker and the machine in it. A worker that an earlier machine left in the directory is ended.
    pub fn launch(config: &RemoteConfig) -> Result<Self, MachineError> {
        let KvmConfig { name, layout, vcpus, boot, paused, .. } = &config.machine;
        let runtime = RuntimeDir::new(&config.runtime_dir);
        runtime.prepare()?;
        if let Ok((_, mut old)) = connect(&runtime) {
            old.kill();
        }
        runtime.remove_sockets();
        let memory = memory_file(layout)?;
        let log = log_file(&runtime.console_log())?;
        start(&config.program, &config.arguments, &runtime)?;
        let (stream, process) = connect_soon(&runtime)?;
        let io = |source| MachineError::Io { doing: "speaking to the worker".into(), source };
        let mut channel = Channel::new(stream, Some(START_PATIENCE)).map_err(io)?;
        let launch = Request::Launch(Box::new(Launch {
            version: VERSION,
            name: name.clone(),
            layout: layout.clone(),
            vcpus: *vcpus,
            boot: boot.clone(),
            detached: config.detached,
            limits: config.limits,
        }));
        let sent = channel.send(&launch, &[], &[memory.as_fd(), log.as_fd()]);
        let mut machine = Self::greeted(name, channel, process, runtime, sent, Some(memory))?;
        machine.detached = config.detached;
        if !paused {
            machine.resume()?;
        }
        Ok(machine)
    }

    /// Takes over a worker that an earlier self started and left. Whether the guest runs is not changed.
    pub fn attach(name: &str, runtime_dir: &Path) -> Result<Self, MachineError> {
        let runtime = RuntimeDir::new(runtime_dir);
        let (stream, process) = connect(&runtime).map_err(|source| MachineError::Io {
            doing: format!("connecting to the worker at {}", runtime.control().display()),
            source,
        })?;
        let io = |source| MachineError::Io { doing: "speaking to the worker".into(), source };
        let mut channel = Channel::new(stream, Some(PATIENCE)).map_err(io)?;
        let sent = channel.send(&Request::Hello { version: VERSION }, &[], &[]);
        let mut machine = Self::greeted(name, channel, process, runtime, sent, None)?;
        machine.paused = machine.run_state() == RunState::Paused;
        Ok(machine)
    }

    /// Waits for the worker's greeting and checks it. Without a `memory` of ours the worker's is taken.
    fn greeted(
        name: &str,
        mut channel: Channel,
        mut process: Process,
        runtime: RuntimeDir,
        sent: io::Result<()>,
        memory: Option<File>,
    ) -> Result<Self, MachineError> {
        let doing = "starting the machine in its worker";
        let ours = memory.is_some();
        let refuse = |process: &mut Process, message: String| {
            if ours {
                process.kill();
            }
            MachineError::Driver { doing: doing.into(), message }
        };
        let received = match sent.and_then(|()| channel.receive::<Answer>(0)) {
            Ok(Some(received)) => received,
            Ok(None) => {
                process.wait(Duration::from_secs(1));
                let message = process.obituary();
                return Err(refuse(&mut process, message));
            }
            Err(error) => {
                process.wait(Duration::from_millis(100));
                let message = format!("{error}; {}", process.obituary());
                return Err(refuse(&mut process, message));
            }
        };
        let welcome = match received.head {
            Answer::Welcome(welcome) => *welcome,
            Answer::Failed(failure) => {
                refuse(&mut process, String::new());
                return Err(failure.of(name, doing));
            }
            _ => return Err(refuse(&mut process, "the worker does not greet".into())),
        };
        let Welcome { version, identity, confinement } = welcome;
        if version != VERSION || identity.name != name || identity.driver != "kvm" {
            let other = format!("the worker runs {} of version {version}", plain(&identity.name));
            return Err(refuse(&mut process, other));
        }
        let theirs = received.fds.into_iter().next();
        let Some(memory) = memory.or_else(|| theirs.and_then(sealed)) else {
            return Err(refuse(&mut process, "the worker gives no memory that keeps its length".into()));
        };
        channel
            .set_patience(PATIENCE)
            .map_err(|source| MachineError::Io { doing: "speaking to the worker".into(), source })?;
        Ok(Self {
            ram: Ram::shared(identity.layout.clone(), Arc::new(memory), 0)?,
            identity,
            channel,
            process,
            runtime,
            confinement: shown(&confinement),
            detached: true,
            paused: true,
            lost: None,
            ended: None,
            unseen: true,
        })
    }

    /// The socket of the guest's serial port.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.runtime.console()
    }

    /// The file with what the guest wrote to its serial port.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.runtime.console_log()
    }

    /// How confined the worker says it is.
    #[must_use]
    pub fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// The worker's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Why the guest ended by itself, or the worker was lost, as far as is known.
    #[must_use]
    pub fn ended(&self) -> Option<&str> {
        self.lost.as_deref().or(self.ended.as_deref())
    }

    /// Ends the worker, also a detached one. Logs stay in the runtime directory.
    pub fn quit(mut self) {
        self.process.kill();
        self.runtime.remove_sockets();
        self.lost = Some("it was ended".into());
    }

    fn gone(&self, reason: String) -> MachineError {
        MachineError::Gone { machine: self.identity.name.clone(), reason }
    }

    /// Asks, and waits for the answer, whose body has at most `body_bytes_max` bytes; gives it to `use_answer`.
    fn ask<T>(
        &mut self,
        doing: &'static str,
        request: &Request,
        body: &[&[u8]],
        body_bytes_max: usize,
        use_answer: impl FnOnce(Answer, &[u8]) -> Option<T>,
    ) -> Result<T, MachineError> {
        if let Some(reason) = &self.lost {
            return Err(self.gone(reason.clone()));
        }
        let sent = self.channel.send(request, body, &[]);
        let received = sent.and_then(|()| self.channel.receive::<Answer>(body_bytes_max));
        match received {
            Ok(Some(received)) => {
                let used = match received.head {
                    Answer::Failed(failure) => return Err(failure.of(&self.identity.name, doing)),
                    other => use_answer(other, self.channel.bytes(received.body)),
                };
                used.ok_or_else(|| self.lose(&format!("the worker answered nonsense when {doing}")))
            }
            Ok(None) => Err(self.lose("")),
            Err(error) => Err(self.lose(&format!("{doing}: {error}"))),
        }
    }

    /// Gives the worker up: nothing that it says can be relied on.
    fn lose(&mut self, why: &str) -> MachineError {
        // One that crashed says so by itself.
        self.process.wait(Duration::from_millis(if why.is_empty() { 1000 } else { 100 }));
        let mut reason = self.process.obituary();
        if !self.process.ended() {
            self.process.kill();
            reason = format!("{why}; it was ended");
        }
        self.lost = Some(reason.clone());
        self.gone(reason)
    }
}

impl Machine for RemoteMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn run_state(&mut self) -> RunState {
        if self.lost.is_none() && self.process.ended() {
            self.lose("");
        }
        let state = self.ask("asking how it is", &Request::RunState, &[], 0, |answer, _| match answer {
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
        self.ask("pausing", &Request::Pause, &[], 0, |answer, body| done(&answer, body))?;
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.ask("resuming", &Request::Resume, &[], 0, |answer, body| done(&answer, body))?;
        self.paused = false;
        Ok(())
    }

    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let bytes = usize::try_from(self.identity.layout.pages().div_ceil(64)).unwrap_or(usize::MAX) * 8;
        self.ask("looking for dirty pages", &Request::TakeDirty, &[], bytes, |answer, body| {
            if !matches!(answer, Answer::Done) || body.len() != bytes {
                return None;
            }
            for (at, word) in body.as_chunks::<8>().0.iter().enumerate() {
                // What is past the end is passed over.
                into.insert_word(at, u64::from_le_bytes(*word));
            }
            Some(())
        })?;
        if self.unseen {
            into.union(&PageSet::full(&self.identity.layout));
            self.unseen = false;
        }
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.ram
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        let vcpus = self.identity.vcpus as usize;
        self.ask("capturing the state", &Request::Capture, &[], STATE_BYTES_MAX, |answer, body| {
            let Answer::Captured(head) = answer else { return None };
            head.join(body).filter(|state| state.vcpus.len() == vcpus)
        })
    }

    fn sync_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        if !self.paused {
            return Err(MachineError::RunState { doing: "writing memory", needed: "paused" });
        }
        Ok(self.ram.write_page(gfn, content)?)
    }

    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        let (head, pieces) = StateHead::split(state)?;
        self.ask(
            "putting a state back",
            &Request::Apply { clock, state: head },
            &pieces,
            0,
            |answer, body| done(&answer, body),
        )
    }

    fn release_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }
}

impl Drop for RemoteMachine {
    fn drop(&mut self) {
        // A guest that ended by itself has nothing left to go on with.
        if !self.detached || self.lost.is_some() || self.ended.is_some() {
            self.process.kill();
            self.runtime.remove_sockets();
        }
    }
}

fn done(answer: &Answer, body: &[u8]) -> Option<()> {
    (matches!(answer, Answer::Done) && body.is_empty()).then_some(())
}

/// What a worker says about itself, cut to what can be shown.
fn shown(said: &Confinement) -> Confinement {
    Confinement {
        done: said.done.iter().take(LINES_MAX).map(|what| plain(what)).collect(),
        missing: said.missing.iter().take(LINES_MAX).map(|(what, why)| (plain(what), plain(why))).collect(),
    }
}
