//! The lifecycle of a machine as one state machine: its states, and what each command does in each of them.
//!
//! [`rule`] is the only place that decides whether a command is executed. `docs/lifecycle.md` shows it as a table, which a
//! test compares with this code; another test executes every cell.

use std::fmt;

use retrovisor_guest::RunState;
use serde::{Deserialize, Serialize};

/// The state of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lifecycle {
    /// Its process is being started, attached to, or given a state.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped and can run on.
    Paused(PausedBy),
    /// Its guest powered itself off; the process is still there.
    PoweredOff,
    /// Its guest's kernel panicked and was stopped; the process is still there.
    Panicked,
    /// Its process is there and does not answer.
    Unreachable,
    /// Its memory is half written, or does not have the hash of its checkpoint: it must be taken to one before it may run.
    Failed,
    /// Its process is there and is not managed, because the user said so.
    Detached,
    /// It has no process.
    Gone,
}

/// Who stopped the vCPUs of a paused machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PausedBy {
    /// The user.
    User,
    /// A policy of Retrovisor.
    Policy,
    /// The virtual machine monitor, because a disk failed on the host.
    DiskError,
    /// Another client of the virtual machine monitor, or the program that started it.
    Other,
}

impl Lifecycle {
    /// All states.
    pub const ALL: [Self; 12] = [
        Self::Starting,
        Self::Running,
        Self::Paused(PausedBy::User),
        Self::Paused(PausedBy::Policy),
        Self::Paused(PausedBy::DiskError),
        Self::Paused(PausedBy::Other),
        Self::PoweredOff,
        Self::Panicked,
        Self::Unreachable,
        Self::Failed,
        Self::Detached,
        Self::Gone,
    ];

    /// Whether the machine has an actor in this state.
    #[must_use]
    pub fn has_actor(self) -> bool {
        matches!(self, Self::Running | Self::Paused(_) | Self::PoweredOff | Self::Panicked | Self::Failed)
    }

    /// The state after the driver reported `run_state`. `paused_by` is who stopped the vCPUs, if they were stopped since
    /// the state was observed last; `is_process_alive` is asked for a machine that cannot be reached.
    #[must_use]
    pub fn observed(
        self,
        run_state: RunState,
        paused_by: Option<PausedBy>,
        is_process_alive: impl FnOnce() -> bool,
    ) -> Self {
        match (run_state, self) {
            (RunState::Gone, _) if is_process_alive() => Self::Unreachable,
            (RunState::Gone, _) => Self::Gone,
            // What it holds is half written, whatever its vCPUs do.
            (_, Self::Failed) => Self::Failed,
            (RunState::PoweredOff, _) => Self::PoweredOff,
            (RunState::Panicked, _) => Self::Panicked,
            (RunState::Running, _) => Self::Running,
            (RunState::Paused, Self::Paused(by)) => Self::Paused(paused_by.unwrap_or(by)),
            (RunState::Paused, _) => Self::Paused(paused_by.unwrap_or(PausedBy::Other)),
        }
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused(PausedBy::User) => "paused by the user",
            Self::Paused(PausedBy::Policy) => "paused by a policy",
            Self::Paused(PausedBy::DiskError) => "paused by a disk error",
            Self::Paused(PausedBy::Other) => "paused by another program",
            Self::PoweredOff => "powered off",
            Self::Panicked => "panicked",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
            Self::Detached => "detached",
            Self::Gone => "gone",
        })
    }
}

/// The kinds of commands that the state of a machine allows or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum CommandKind {
    Checkpoint,
    Audit,
    Rollback,
    Undo,
    Redo,
    Pause,
    Resume,
    Stop,
    /// `stop` with `force`.
    ForceStop,
    /// A fault in the guest's memory.
    Inject,
    /// A command line for a shell in the guest.
    InjectCommand,
    Set,
    Detach,
    Remove,
    Run,
    Attach,
}

impl CommandKind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Run,
        Self::Attach,
        Self::Checkpoint,
        Self::Audit,
        Self::Rollback,
        Self::Undo,
        Self::Redo,
        Self::Pause,
        Self::Resume,
        Self::Inject,
        Self::InjectCommand,
        Self::Set,
        Self::Stop,
        Self::ForceStop,
        Self::Detach,
        Self::Remove,
    ];
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "checkpoint",
            Self::Audit => "audit",
            Self::Rollback => "rollback",
            Self::Undo => "undo",
            Self::Redo => "redo",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::ForceStop => "stop --force",
            Self::Inject => "inject memory",
            Self::InjectCommand => "inject command",
            Self::Set => "set",
            Self::Detach => "detach",
            Self::Remove => "remove",
            Self::Run => "run",
            Self::Attach => "attach",
        })
    }
}

/// What a command does in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is executed, and leaves the state as it is.
    Stays,
    /// It is executed, and leads to this state.
    Leads(Lifecycle),
    /// It is executed, and leads to the desired state of the user: running or paused.
    LeadsToDesired,
    /// It is executed, and nothing of the machine is left.
    Removes,
    /// It is refused; [`help`] says what to do instead.
    Refused,
}

/// What a command does in a state, if it succeeds. A command that fails leaves the state as it is, but for a rollback whose
/// memory could not be reverted, which leads to [`Lifecycle::Failed`].
#[must_use]
#[expect(clippy::match_same_arms, reason = "one arm for each group of commands, in the order of the table")]
pub fn rule(state: Lifecycle, command: CommandKind) -> Rule {
    use CommandKind as C;
    use Lifecycle as S;
    match (command, state) {
        // Nothing is done to a machine that another command is bringing up.
        (_, S::Starting) => Rule::Refused,
        (C::Set, _) => Rule::Stays,

        (C::Run, S::Gone) => Rule::Leads(S::Running),
        // What an attach finds paused stays paused.
        (C::Attach, S::Gone | S::Detached | S::Unreachable) => Rule::Leads(S::Running),

        (C::Checkpoint | C::Audit | C::Undo | C::Redo | C::Inject, S::Running | S::Paused(_)) => Rule::Stays,
        (C::InjectCommand, S::Running) => Rule::Stays,
        (C::Rollback, S::Running | S::Paused(_)) => Rule::Stays,
        (C::Rollback, S::PoweredOff | S::Panicked | S::Failed | S::Gone) => Rule::LeadsToDesired,

        (C::Pause, S::Running | S::Paused(_)) => Rule::Leads(S::Paused(PausedBy::User)),
        (C::Resume, S::Running | S::Paused(_)) => Rule::Leads(S::Running),

        (C::Stop | C::ForceStop, S::Running | S::Paused(_) | S::PoweredOff | S::Panicked | S::Failed)
        | (C::ForceStop, S::Unreachable) => Rule::Leads(S::Gone),
        (C::Detach, S::Running | S::Paused(_) | S::PoweredOff | S::Panicked | S::Unreachable) => {
            Rule::Leads(S::Detached)
        }
        (C::Detach, S::Detached) => Rule::Stays,
        (C::Remove, S::Gone) => Rule::Removes,

        _ => Rule::Refused,
    }
}

/// What to do instead of a command that is refused in a state.
#[must_use]
pub fn help(state: Lifecycle, command: CommandKind, machine: &str) -> String {
    if command == CommandKind::Remove && state != Lifecycle::Starting {
        return match state {
            Lifecycle::Detached => format!("Attach it, then stop it: retrovisor attach {machine}"),
            Lifecycle::Unreachable => format!("Stop it first: retrovisor stop {machine} --force"),
            _ => format!("Stop it first: retrovisor stop {machine}"),
        };
    }
    match state {
        Lifecycle::Starting => "Try again when it runs.".to_owned(),
        Lifecycle::PoweredOff | Lifecycle::Panicked | Lifecycle::Failed => format!(
            "Take it back: retrovisor rollback {machine} --to latest. Or end its process: retrovisor stop {machine}"
        ),
        Lifecycle::Unreachable => {
            format!("It is tried again every few seconds. End its process: retrovisor stop {machine} --force")
        }
        Lifecycle::Detached => format!("Attach it again: retrovisor attach {machine}"),
        Lifecycle::Gone => format!("Bring it back: retrovisor rollback {machine} --to latest"),
        Lifecycle::Running | Lifecycle::Paused(_) => match command {
            CommandKind::InjectCommand => format!("Let it run first: retrovisor resume {machine}"),
            _ => format!("Look at it: retrovisor show {machine}"),
        },
    }
}

/// The rules as the table of `docs/lifecycle.md`.
#[must_use]
pub fn table() -> String {
    use std::fmt::Write as _;
    let states = Lifecycle::ALL;
    let mut text = "| state |".to_owned();
    for command in CommandKind::ALL {
        let _ = write!(text, " {command} |");
    }
    text.push_str("\n| --- |");
    text.push_str(&" --- |".repeat(CommandKind::ALL.len()));
    text.push('\n');
    for state in states {
        let _ = write!(text, "| {state} |");
        for command in CommandKind::ALL {
            let _ = match rule(state, command) {
                Rule::Stays => write!(text, " stays |"),
                Rule::Leads(to) => write!(text, " {to} |"),
                Rule::LeadsToDesired => write!(text, " desired |"),
                Rule::Removes => write!(text, " removed |"),
                Rule::Refused => write!(text, " - |"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_that_of_the_code() {
        let page = include_str!("../../docs/lifecycle.md");
        let begin = page.find("| state | run |").expect("docs/lifecycle.md has the table");
        let documented: String = page[begin..].lines().take_while(|line| line.starts_with('|')).fold(
            String::new(),
            |mut text, line| {
                text.push_str(line);
                text.push('\n');
                text
            },
        );
        assert_eq!(documented, table(), "replace the table in docs/lifecycle.md by:\n{}", table());
    }

    #[test]
    fn every_refusal_names_a_way_out() {
        for state in Lifecycle::ALL {
            for command in CommandKind::ALL {
                if rule(state, command) == Rule::Refused {
                    assert!(!help(state, command, "web").is_empty(), "{state} {command}");
                }
            }
        }
    }

    #[test]
    fn what_the_driver_reports_decides_the_state() {
        let running = Lifecycle::Running;
        let never = || -> bool { panic!("only asked of a machine that cannot be reached") };
        let paused = |by| Lifecycle::Paused(by);
        assert_eq!(running.observed(RunState::Running, None, never), running);
        assert_eq!(running.observed(RunState::Paused, None, never), paused(PausedBy::Other));
        let disk = Some(PausedBy::DiskError);
        assert_eq!(running.observed(RunState::Paused, disk, never), paused(PausedBy::DiskError));
        let by_user = paused(PausedBy::User);
        assert_eq!(by_user.observed(RunState::Paused, None, never), by_user);
        assert_eq!(by_user.observed(RunState::Running, None, never), running);
        assert_eq!(by_user.observed(RunState::PoweredOff, None, never), Lifecycle::PoweredOff);
        assert_eq!(running.observed(RunState::Panicked, None, never), Lifecycle::Panicked);
        assert_eq!(running.observed(RunState::Gone, None, || true), Lifecycle::Unreachable);
        assert_eq!(running.observed(RunState::Gone, None, || false), Lifecycle::Gone);
        for run_state in [RunState::Running, RunState::Paused, RunState::PoweredOff] {
            assert_eq!(Lifecycle::Failed.observed(run_state, None, never), Lifecycle::Failed);
        }
        assert_eq!(Lifecycle::PoweredOff.observed(RunState::Running, None, never), running);
    }
}
