//! The calls of the driver that a step makes in a state, to act on each of them, and what must hold afterwards.

use std::any::Any;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use retrovisor_guest::RunState;
use retrovisor_manager::{Command, CommandKind, Lifecycle, MachineSpec, ManagerError, Origin, Rule, rule};
use retrovisor_scripted::{Action, Method, Script};

use crate::commands::execute;
use crate::setup::{Daemon, MEMORY_BYTES};

/// The machine that the failures are injected into.
pub(crate) const NAME: &str = "web";
/// A branch of it.
pub(crate) const COPY: &str = "copy";
/// Another machine, which must not notice.
pub(crate) const OTHER: &str = "db";

/// What is done to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Command(CommandKind),
    /// A rollback, undo or redo that does not compare memory afterwards.
    Unverified(CommandKind),
    Branch,
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The process that the machine has before the step.
    Machine,
    /// The process that the step starts.
    Launched,
    /// The driver's own.
    Driver,
}

/// A call that something is to happen in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injection {
    pub(crate) place: Place,
    pub(crate) method: Method,
    nth: u64,
}

/// A step in a state; without a state, of a name that the store does not have.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) state: Option<Lifecycle>,
    pub(crate) step: Step,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            Some(state) => write!(f, "{:?} when {state}", self.step),
            None => write!(f, "{:?} of a new name", self.step),
        }
    }
}

/// All steps that are executed in a state, and one that is refused.
pub(crate) fn cases(state: Option<Lifecycle>) -> Vec<Case> {
    let Some(known) = state else {
        return [CommandKind::Run, CommandKind::Attach]
            .map(|command| Case { state, step: Step::Command(command) })
            .to_vec();
    };
    let allowed = |command: &CommandKind| rule(known, *command) != Rule::Refused;
    let mut steps: Vec<_> = CommandKind::ALL.into_iter().filter(allowed).map(Step::Command).collect();
    let moves = [CommandKind::Rollback, CommandKind::Undo, CommandKind::Redo];
    steps.extend(moves.into_iter().filter(allowed).map(Step::Unverified));
    if matches!(known, Lifecycle::Running | Lifecycle::Gone) {
        steps.push(Step::Branch);
    }
    if known.has_actor() && !allowed(&CommandKind::Checkpoint) {
        steps.push(Step::Command(CommandKind::Checkpoint));
    }
    steps.into_iter().map(|step| Case { state, step }).collect()
}

/// What is known of the machine before the step.
pub(crate) struct Before {
    origin: Option<Origin>,
    is_foreign: bool,
}

impl Case {
    /// Brings the machine into the state.
    pub(crate) fn prepare(self, daemon: &Daemon) -> Before {
        if let Some(state) = self.state {
            daemon.bring_into(NAME, state);
        }
        if matches!(self.step, Step::Command(CommandKind::Redo) | Step::Unverified(CommandKind::Redo)) {
            execute(daemon, NAME, CommandKind::Undo).unwrap();
        }
        let is_attach = self.step == Step::Command(CommandKind::Attach);
        let is_foreign = is_attach && matches!(self.state, None | Some(Lifecycle::Gone));
        if is_foreign {
            daemon.host.start(NAME, &daemon.dir.path().join("foreign"), MEMORY_BYTES);
        }
        Before { origin: origin(daemon), is_foreign }
    }

    /// The calls that the step makes if nothing happens in them: of each method the first, the second and the last one.
    pub(crate) fn injections(self) -> Vec<Injection> {
        let daemon = Daemon::new();
        let before = self.prepare(&daemon);
        let has_process = daemon.host.has_process(NAME);
        let machine = has_process.then(|| daemon.host.script(NAME));
        let driver = daemon.host.calls().clone();
        let count = |script: &Script| Method::ALL.map(|method| script.calls(method));
        let counted = (machine.as_ref().map(count), count(&driver));
        let done = self.execute(&daemon);
        assert_ne!(done.is_ok(), self.is_refused_step(), "{self}: {done:?}");
        let mut injections = Vec::new();
        let mut add = |place, now: &Script, before: [u64; Method::ALL.len()]| {
            for (method, before) in Method::ALL.into_iter().zip(before) {
                let calls = now.calls(method) - before;
                let mut nths = vec![1, 2, calls];
                nths.dedup();
                nths.retain(|nth| *nth <= calls && *nth > 0);
                injections.extend(nths.into_iter().map(|nth| Injection { place, method, nth }));
            }
        };
        if let Some((machine, before)) = machine.as_ref().zip(counted.0) {
            add(Place::Machine, machine, before);
        }
        add(Place::Driver, &driver, counted.1);
        let launched = if self.step == Step::Branch { COPY } else { NAME };
        let is_launched = launched == COPY || (!has_process && !before.is_foreign);
        if is_launched && daemon.host.has_process(launched) {
            add(Place::Launched, &daemon.host.script(launched), [0; Method::ALL.len()]);
        }
        injections
    }

    /// Whether it is refused whatever the driver does.
    pub(crate) fn is_refused_step(self) -> bool {
        let is_refused =
            |state| matches!(self.step, Step::Command(command) if rule(state, command) == Rule::Refused);
        self.needs_shell() || self.state.is_some_and(is_refused)
    }

    /// Whether it takes the machine to another checkpoint.
    pub(crate) fn moves(self) -> bool {
        use CommandKind as C;
        matches!(self.step, Step::Unverified(_) | Step::Command(C::Rollback | C::Undo | C::Redo))
    }

    fn needs_shell(self) -> bool {
        self.step == Step::Command(CommandKind::InjectCommand)
    }

    pub(crate) fn execute(self, daemon: &Daemon) -> Result<(), ManagerError> {
        match self.step {
            Step::Command(command) => execute(daemon, NAME, command),
            Step::Unverified(CommandKind::Undo) => {
                daemon.ask(NAME, |reply| Command::Undo { verify_image: false, reply }).map(drop)
            }
            Step::Unverified(CommandKind::Redo) => {
                daemon.ask(NAME, |reply| Command::Redo { verify_image: false, reply }).map(drop)
            }
            Step::Unverified(_) => daemon.rollback(NAME, daemon.newest(NAME), false).map(drop),
            Step::Branch => {
                let planned = daemon.manager.plan_branch(COPY, daemon.newest(NAME))?;
                daemon.manager.branch(COPY, &planned, false, &mut |_| ControlFlow::Continue(())).map(drop)
            }
        }
    }

    /// The same; a panic in it is an error, as for the service.
    pub(crate) fn try_execute(
        self,
        daemon: &Daemon,
    ) -> Result<Result<(), ManagerError>, Box<dyn Any + Send>> {
        catch_unwind(AssertUnwindSafe(|| self.execute(daemon)))
    }

    /// What must hold when the step is done: the machine is in a known state, a failure leaves nothing, and the others
    /// go on.
    pub(crate) fn check(self, daemon: &Daemon, before: &Before, failed: bool, what: &str) {
        let mut names = vec![OTHER];
        names.extend(self.state.map(|_| NAME));
        if self.state.is_none() && !failed {
            names.push(NAME);
        }
        if self.step == Step::Branch {
            assert_eq!(daemon.host.has_process(COPY), !failed, "{what}: the branch's process");
            names.extend((!failed).then_some(COPY));
        }
        if self.step == Step::Command(CommandKind::Remove) && !failed {
            names.retain(|name| *name != NAME);
        }
        names.sort_unstable();
        assert_eq!(known(daemon), names, "{what}: the names in the store");
        if names.contains(&NAME) {
            let state = daemon.state(NAME);
            assert_ne!(state, Lifecycle::Starting, "{what}");
            let has_process = daemon.host.has_process(NAME) && !(before.is_foreign && failed);
            assert_eq!(state != Lifecycle::Gone, has_process, "{what}: it is {state}");
            if failed {
                assert_eq!(origin(daemon), before.origin, "{what}: how it is started has changed");
            }
        }
        if before.is_foreign && failed {
            let run_state = daemon.host.script(NAME).run_state();
            assert_eq!(run_state, RunState::Running, "{what}: it was attached to, and is left otherwise");
        }
        daemon.checkpoint(OTHER).unwrap_or_else(|error| panic!("{what}: {OTHER}: {error}"));
        assert_eq!(daemon.state(OTHER), Lifecycle::Running, "{what}");
    }
}

impl Injection {
    /// Whether it is the first call of its method.
    pub(crate) fn is_first(self) -> bool {
        self.nth == 1
    }

    pub(crate) fn arm(self, daemon: &Daemon, action: Action) {
        match self.place {
            Place::Machine => daemon.host.script(NAME).on(self.method, self.nth, action),
            Place::Launched => daemon.host.on_next_launched(self.method, self.nth, action),
            Place::Driver => daemon.host.calls().on(self.method, self.nth, action),
        }
    }
}

/// How the machine is started or found, as far as no command changes it.
fn origin(daemon: &Daemon) -> Option<Origin> {
    let record = daemon.manager.store().catalogue().machine(NAME).ok()?;
    Some(MachineSpec::from_runtime(NAME, &record.runtime).unwrap().origin)
}

/// The names in the store, in order.
fn known(daemon: &Daemon) -> Vec<String> {
    let machines = daemon.manager.store().catalogue().machines().unwrap();
    let mut names: Vec<_> = machines.into_iter().map(|machine| machine.name).collect();
    names.sort_unstable();
    names
}

/// Whatever failed, the machine can be brought to run again, stopped and removed, with nothing left of it.
pub(crate) fn must_recover(daemon: &Daemon, what: &str) {
    let must = |done: Result<(), ManagerError>| done.unwrap_or_else(|error| panic!("{what}: {error}"));
    daemon.host.clear();
    if known(daemon).iter().any(|name| name == COPY) {
        must(daemon.stop(COPY, true));
        must(execute(daemon, COPY, CommandKind::Remove));
    }
    daemon.manager.retry_unreachable();
    if known(daemon).iter().any(|name| name == NAME) {
        recover_known(daemon, &must, what);
    } else if daemon.host.has_process(NAME) {
        must(execute(daemon, NAME, CommandKind::Attach));
    } else {
        must(daemon.run(NAME));
    }
    assert_eq!(daemon.host.script(NAME).run_state(), RunState::Running, "{what}");
    must(daemon.checkpoint(NAME).map(drop));
    must(daemon.stop(NAME, false));
    must(execute(daemon, NAME, CommandKind::Remove));
    assert_eq!(daemon.host.pids().len(), 1, "{what}: a process is left");
    assert_eq!(known(daemon), [OTHER], "{what}");
}

fn recover_known(daemon: &Daemon, must: &dyn Fn(Result<(), ManagerError>), what: &str) {
    let state = daemon.state(NAME);
    match state {
        Lifecycle::Running | Lifecycle::Paused(_) => {}
        Lifecycle::Detached => must(execute(daemon, NAME, CommandKind::Attach)),
        // What was to be attached to.
        Lifecycle::Gone if daemon.host.has_process(NAME) => must(execute(daemon, NAME, CommandKind::Attach)),
        Lifecycle::PoweredOff | Lifecycle::Panicked | Lifecycle::Failed | Lifecycle::Gone => {
            must(execute(daemon, NAME, CommandKind::Rollback));
        }
        Lifecycle::Starting | Lifecycle::Unreachable => panic!("{what}: {:?}", daemon.status(NAME)),
    }
    if matches!(daemon.state(NAME), Lifecycle::PoweredOff | Lifecycle::Panicked) {
        // It was detached in that state.
        must(execute(daemon, NAME, CommandKind::Rollback));
    }
    if daemon.state(NAME) != Lifecycle::Running {
        must(daemon.resume(NAME));
    }
}
