//! Every kind of command, executed.

use std::collections::HashMap;
use std::ops::ControlFlow;

use retrovisor_manager::{Command, CommandKind, Fault, Lifecycle, MachineSpec, ManagerError, PausedBy};

use crate::setup::{Daemon, MEMORY_BYTES, wait};

/// Executes a command as a user would.
pub(crate) fn execute(daemon: &Daemon, name: &str, command: CommandKind) -> Result<(), ManagerError> {
    let manager = &daemon.manager;
    match command {
        CommandKind::Run => daemon.run(name),
        CommandKind::Attach => {
            daemon.host.refuse_attach(None);
            if manager.status(name).is_ok_and(|status| status.state != Lifecycle::Gone) {
                return manager.attach_again(name);
            }
            let socket = daemon.dir.path().join("foreign");
            if !daemon.host.has_process(name) {
                daemon.host.start(name, &socket, MEMORY_BYTES);
            }
            manager.attach(name, &MachineSpec::attached(socket, 0))
        }
        CommandKind::Checkpoint => daemon.checkpoint(name).map(drop),
        CommandKind::Audit => daemon.ask(name, |reply| Command::Audit { reply }).map(drop),
        CommandKind::Rollback => {
            let target = daemon.newest(name);
            daemon.rollback(name, target, true).map(drop)
        }
        CommandKind::Undo => daemon.ask(name, |reply| Command::Undo { verify_image: true, reply }).map(drop),
        CommandKind::Redo => daemon.ask(name, |reply| Command::Redo { verify_image: true, reply }).map(drop),
        CommandKind::Pause => daemon.pause(name, PausedBy::User),
        CommandKind::Resume => daemon.resume(name),
        CommandKind::Stop => daemon.stop(name, false),
        CommandKind::ForceStop => daemon.stop(name, true),
        CommandKind::Inject => {
            let arguments = HashMap::from([("gpa".to_owned(), "0x2000".to_owned())]);
            let fault = Fault::Memory { name: "bit-flip".to_owned(), arguments };
            daemon.ask(name, |reply| Command::Inject { fault, reply }).map(drop)
        }
        CommandKind::InjectCommand => {
            let fault = Fault::ConsoleCommand { line: "date".to_owned() };
            daemon.ask(name, |reply| Command::Inject { fault, reply }).map(drop)
        }
        CommandKind::Set => wait(manager.set_interval(name, 60_000)),
        CommandKind::Detach => wait(manager.detach(name)).map(drop),
        CommandKind::Remove => manager.remove(name, &mut |_| ControlFlow::Continue(())).map(drop),
    }
}
