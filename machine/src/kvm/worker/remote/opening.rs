//! Opens a machine in a worker: starts the worker, or attaches to a running one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retrovisor_guest::{Machine as _, MachineError, ProcessIdentity, RunState};

use super::pause_reply::PauseReply;
use super::{LINES_MAX, RemoteMachine};
use crate::kvm::config::KvmConfig;
use crate::kvm::net::link::Link;
use crate::kvm::worker::channel::Channel;
use crate::kvm::worker::config::RemoteConfig;
use crate::kvm::worker::confine::Confinement;
use crate::kvm::worker::failure::plain;
use crate::kvm::worker::launch::{bound, connect, connect_soon, log_file, memory_file, sealed, start};
use crate::kvm::worker::link::Link as WorkerLink;
use crate::kvm::worker::message::{Answer, Launch, Request, VERSION, Welcome};
use crate::kvm::worker::runtime::RuntimeDir;
use crate::process::Process;
use crate::ram::Ram;

/// A worker that takes longer to reply is considered dead, and is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// A start includes reading a kernel and an initial RAM file system from a slow disk.
const START_PATIENCE: Duration = Duration::from_mins(2);

impl RemoteMachine {
    /// Starts a worker and its machine. An earlier worker that still runs in the directory is ended.
    pub fn launch(config: &RemoteConfig) -> Result<Self, MachineError> {
        let KvmConfig { name, layout, memory: _, vcpus, boot, disks, nets, channel: has_channel, paused } =
            &config.machine;
        let runtime = RuntimeDir::new(&config.runtime_dir);
        runtime.prepare()?;
        if let Ok((_, mut old)) = connect(&runtime) {
            old.kill();
        }
        runtime.remove_sockets();
        let memory = memory_file(layout)?;
        let logs = [log_file(&runtime.console_log())?, log_file(&runtime.older_console_log())?];
        // The worker cannot open anything itself. After the end of an earlier one, which may have used the same tap.
        let links = nets.iter().map(|net| Ok(Link::open(&net.backend)?.into_fd()));
        let links = links.collect::<Result<Vec<_>, MachineError>>()?;
        let shell = has_channel.then(|| bound(&runtime.channel())).transpose().map_err(|source| {
            MachineError::Io { doing: format!("making {}", runtime.channel().display()), source }
        })?;
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
            disks: disks.clone(),
            nets: nets.iter().map(|net| net.mac).collect(),
            channel: *has_channel,
            awaits_state: config.awaits_state,
            detached: config.detached,
            limits: config.limits,
        }));
        let fds = [&memory, &logs[0], &logs[1]].map(AsFd::as_fd).into_iter();
        let fds: Vec<_> = fds.chain(shell.iter().chain(&links).map(AsFd::as_fd)).collect();
        let sent = channel.send(&launch, &[], &fds);
        let mut machine = Self::greeted(name, channel, process, runtime, sent, Some(memory))?;
        machine.detached = false;
        // A machine that waits for its state cannot run yet.
        if !paused && !config.awaits_state {
            machine.resume()?;
        }
        if config.detached {
            machine.detached = true;
            machine.link().process().keep();
        }
        Ok(machine)
    }

    /// Attaches to a worker that an earlier process started and detached. Does not change whether the guest runs.
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

    /// The process of the worker that listens in that directory.
    pub(in crate::kvm) fn find(runtime_dir: &Path) -> Result<ProcessIdentity, MachineError> {
        let runtime = RuntimeDir::new(runtime_dir);
        let (_, process) = connect(&runtime).map_err(|source| MachineError::Io {
            doing: format!("connecting to the worker at {}", runtime.control().display()),
            source,
        })?;
        Ok(process.identity().clone())
    }

    /// Waits for the worker's greeting and checks it. With `memory` the worker was started for this machine; without,
    /// its memory comes with the greeting.
    fn greeted(
        name: &str,
        mut channel: Channel,
        mut process: Process,
        runtime: RuntimeDir,
        sent: io::Result<()>,
        memory: Option<File>,
    ) -> Result<Self, MachineError> {
        let doing = "starting the machine in its worker";
        // A worker that was started for this machine must be ended after a failure here.
        if memory.is_some() {
            process.end_on_drop();
        }
        let refuse = |message: String| MachineError::Driver { doing: doing.into(), message };
        let received = match sent.and_then(|()| channel.receive::<Answer>(0)) {
            Ok(Some(received)) => received,
            Ok(None) => {
                process.wait(Duration::from_secs(1));
                let message = process.exit_reason();
                return Err(refuse(message));
            }
            Err(error) => {
                process.wait(Duration::from_millis(100));
                let message = format!("{error}; {}", process.exit_reason());
                return Err(refuse(message));
            }
        };
        let welcome = match received.head {
            Answer::Welcome(welcome) => *welcome,
            Answer::Failed(failure) => return Err(failure.of(name, doing)),
            _ => return Err(refuse("the worker does not greet".into())),
        };
        let Welcome { version, identity, disks, confinement } = welcome;
        if version != VERSION || identity.name != name || identity.driver != "kvm" {
            let other = format!("the worker runs {} of version {version}", plain(&identity.name));
            return Err(refuse(other));
        }
        let received_memory = received.fds.into_iter().next();
        let Some(memory) = memory.or_else(|| received_memory.and_then(sealed)) else {
            return Err(refuse("the worker gives no memory that keeps its length".into()));
        };
        channel
            .set_patience(PATIENCE)
            .map_err(|source| MachineError::Io { doing: "speaking to the worker".into(), source })?;
        Ok(Self {
            ram: Ram::shared(identity.layout.clone(), Arc::new(memory), 0)?,
            pause_reply: PauseReply::empty(&identity.layout),
            identity,
            link: Arc::new(Mutex::new(WorkerLink::new(name, channel, process))),
            disks,
            runtime,
            confinement: shown(&confinement),
            detached: true,
            paused: true,
            ended: None,
            reports_all: true,
        })
    }
}

/// A worker's report about itself, cut to bounded lengths.
fn shown(said: &Confinement) -> Confinement {
    Confinement {
        done: said.done.iter().take(LINES_MAX).map(|what| plain(what)).collect(),
        missing: said.missing.iter().take(LINES_MAX).map(|(what, why)| (plain(what), plain(why))).collect(),
    }
}
