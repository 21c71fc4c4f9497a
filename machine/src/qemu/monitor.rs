//! QEMU's monitor for the driver: commands and jobs whose errors name the machine, and its events.

use std::collections::VecDeque;
use std::time::Duration;

use retrovisor_guest::{GuestEvent, MachineError, ProcessIdentity, RunState};
use serde_json::{Value, json};

use super::event::{guest_event, stops_guest};
use super::message::Event;
use super::message::Version;
use super::qmp::Qmp;
use crate::error::QmpError;
use crate::process::Process;

/// How long saving or loading a state may take.
const JOB_WAIT: Duration = Duration::from_mins(2);
/// How long a process whose socket closed may take to end.
const END_WAIT: Duration = Duration::from_secs(2);
/// Bound on the guest events that are kept until they are read.
const GUEST_EVENTS_MAX: usize = 256;
/// Bound on the removed devices that are kept until they are read: more are not needed to name one.
const DELETED_DEVICES_MAX: usize = 64;

/// Why QEMU stopped the guest, according to its events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StopCause {
    /// It was not stopped, or by a command of this connection, or for a cause that was reported.
    Settled,
    /// An event named the cause; its `STOP` has not arrived yet.
    Named,
    /// It was stopped without a cause that an event named.
    Unnamed,
}

pub(super) struct Monitor {
    /// The machine's name, for messages.
    name: String,
    qmp: Qmp,
    process: Process,
    /// According to the events that were read.
    run_state: RunState,
    /// A command of this connection that stops or starts the guest is in progress.
    is_changing: bool,
    stop_cause: StopCause,
    guest_events: VecDeque<GuestEvent>,
    /// The paths of devices that were removed, and of their parts.
    deleted_devices: Vec<String>,
    /// A vCPU was unplugged since the connection began.
    has_lost_vcpu: bool,
    jobs: u64,
    resumed_by_others: u64,
    /// The socket or the process is gone.
    failed: bool,
}

impl Monitor {
    pub(super) fn new(name: &str, qmp: Qmp, process: Process) -> Result<Self, MachineError> {
        let mut monitor = Self {
            name: name.to_owned(),
            qmp,
            process,
            run_state: RunState::Paused,
            is_changing: false,
            stop_cause: StopCause::Settled,
            guest_events: VecDeque::new(),
            deleted_devices: Vec::new(),
            has_lost_vcpu: false,
            jobs: 0,
            resumed_by_others: 0,
            failed: false,
        };
        monitor.query_run_state()?;
        Ok(monitor)
    }

    pub(super) fn version(&self) -> Version {
        self.qmp.version()
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(super) fn process_identity(&self) -> &ProcessIdentity {
        self.process.identity()
    }

    /// Whether vCPUs run, according to the events that were read.
    pub(super) fn running(&self) -> bool {
        self.run_state == RunState::Running && !self.failed
    }

    /// How often other clients of QEMU resumed the guest, according to the events that were read.
    pub(super) fn resumed_by_others(&self) -> u64 {
        self.resumed_by_others
    }

    /// Whether the guest shut down or panicked, and QEMU still exists.
    pub(super) fn has_ended(&self) -> bool {
        self.run_state.has_ended()
    }

    /// Whether a vCPU was unplugged since the connection began, according to the events that were read.
    pub(super) fn has_lost_vcpu(&self) -> bool {
        self.has_lost_vcpu
    }

    /// Reads the available events, and returns whether the guest runs, and why not.
    pub(super) fn run_state(&mut self) -> RunState {
        let _ = self.read_events();
        if self.stop_cause == StopCause::Unnamed && !self.failed {
            let _ = self.query_run_state();
        }
        if self.process.ended() {
            self.failed = true;
        }
        if self.failed { RunState::Gone } else { self.run_state }
    }

    /// Queries QEMU for states without an event: a vCPU that cannot continue stops without a cause, like a `stop` by
    /// another client.
    fn query_run_state(&mut self) -> Result<(), MachineError> {
        let status = self.execute("query-status", &json!({}))?;
        self.run_state = match text(&status, "status") {
            Some("running") => RunState::Running,
            Some("shutdown" | "internal-error") => RunState::PoweredOff,
            Some("guest-panicked") => RunState::Panicked,
            _ => RunState::Paused,
        };
        self.stop_cause = StopCause::Settled;
        Ok(())
    }

    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, MachineError> {
        let answer = self.qmp.execute(command, arguments);
        answer.map_err(|error| self.explain(error))
    }

    pub(super) fn human(&mut self, line: &str) -> Result<String, MachineError> {
        let answer = self.qmp.human(line);
        answer.map_err(|error| self.explain(error))
    }

    pub(super) fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: std::os::fd::BorrowedFd<'_>,
    ) -> Result<Value, MachineError> {
        let answer = self.qmp.execute_with_fd(command, arguments, fd);
        answer.map_err(|error| self.explain(error))
    }

    /// Runs several commands and waits for the answers of all: one round trip. After a failure, the answers to the
    /// other commands are skipped when they arrive.
    pub(super) fn execute_all(&mut self, commands: &[(&str, Value)]) -> Result<Vec<Value>, MachineError> {
        let sent = commands.iter().map(|(command, arguments)| self.qmp.send(command, arguments));
        let answers = sent.collect::<Result<Vec<_>, _>>().and_then(|ids| {
            let all = ids.into_iter().zip(commands);
            all.map(|(id, (command, _))| self.qmp.answer(id, command)).collect()
        });
        answers.map_err(|error| self.explain(error))
    }

    /// Runs a job to its end. `arguments` are without the job's name.
    pub(super) fn job(&mut self, command: &str, mut arguments: Value) -> Result<(), MachineError> {
        self.jobs += 1;
        let id = format!("rv-{}-{}", std::process::id(), self.jobs);
        arguments["job-id"] = id.clone().into();
        self.run_job(command, &arguments, &id).map_err(|error| self.explain(error))
    }

    fn run_job(&mut self, command: &str, arguments: &Value, id: &str) -> Result<(), QmpError> {
        // Otherwise events of earlier jobs would be searched again at every wait.
        let _ = self.read_events();
        self.qmp.execute(command, arguments)?;
        self.qmp.wait_event(command, JOB_WAIT, |event| {
            event.name == "JOB_STATUS_CHANGE"
                && text(&event.data, "id") == Some(id)
                && text(&event.data, "status") == Some("concluded")
        })?;
        // Both at once; the second answer is skipped when it arrives.
        let query = self.qmp.send("query-jobs", &json!({}))?;
        self.qmp.send("job-dismiss", &json!({ "id": id }))?;
        let jobs = self.qmp.answer(query, "query-jobs")?;
        let own = jobs.as_array().into_iter().flatten().find(|job| text(job, "id") == Some(id));
        match own.map(|job| text(job, "error")) {
            Some(None) => Ok(()),
            Some(Some(description)) => {
                Err(QmpError::Refused { command: command.to_owned(), description: description.to_owned() })
            }
            None => Err(QmpError::Protocol(format!("the job of `{command}` is not listed"))),
        }
    }

    /// Stops the vCPUs and quiesces devices.
    pub(super) fn stop(&mut self) -> Result<(), MachineError> {
        self.is_changing = true;
        let stopped = self.execute("stop", &json!({})).and_then(|_| self.read_events());
        self.is_changing = false;
        stopped?;
        if self.running() {
            self.run_state = RunState::Paused;
        }
        Ok(())
    }

    /// Resumes the vCPUs.
    pub(super) fn cont(&mut self) -> Result<(), MachineError> {
        self.is_changing = true;
        let running = self.execute("cont", &json!({})).map(|_| self.run_state = RunState::Running);
        let running = running.and_then(|()| self.read_events());
        self.is_changing = false;
        running
    }

    /// Leaves the state after a shutdown, in which nothing can run again. Memory does not change.
    pub(super) fn reset(&mut self) -> Result<(), MachineError> {
        self.execute("system_reset", &json!({}))?;
        let done = self.qmp.wait_event("system_reset", JOB_WAIT, |event| event.name == "RESET");
        done.map_err(|error| self.explain(error))?;
        self.run_state = RunState::Paused;
        Ok(())
    }

    /// Reads the available events, and returns those that concern the guest since the last call.
    pub(super) fn guest_events(&mut self) -> Vec<GuestEvent> {
        let _ = self.read_events();
        std::mem::take(&mut self.guest_events).into()
    }

    /// The paths of the devices that were removed since the last call, and of their parts, as far as events were read.
    pub(super) fn take_deleted_devices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.deleted_devices)
    }

    /// Reads the available events and updates the state by them.
    pub(super) fn read_events(&mut self) -> Result<(), MachineError> {
        let (events, end) = self.qmp.drain_events();
        for event in events {
            self.note(&event);
        }
        end.map_err(|error| self.explain(error))
    }

    fn note(&mut self, event: &Event) {
        if stops_guest(event) && self.running() {
            self.stop_cause = StopCause::Named;
        }
        match event.name.as_str() {
            "STOP" => {
                let is_named = self.stop_cause == StopCause::Named;
                self.stop_cause = StopCause::Settled;
                if self.run_state == RunState::Running {
                    self.run_state = RunState::Paused;
                }
                if !self.is_changing && !is_named {
                    self.stop_cause = StopCause::Unnamed;
                    self.keep(GuestEvent::Stopped);
                }
            }
            "RESUME" => {
                self.run_state = RunState::Running;
                self.stop_cause = StopCause::Settled;
                if !self.is_changing {
                    self.resumed_by_others += 1;
                    self.keep(GuestEvent::Resumed);
                }
            }
            "SHUTDOWN" if text(&event.data, "reason") == Some("guest-panic") => {
                self.run_state = RunState::Panicked;
            }
            "SHUTDOWN" => self.run_state = RunState::PoweredOff,
            "GUEST_PANICKED" if stops_guest(event) => self.run_state = RunState::Panicked,
            "DEVICE_DELETED" => self.note_deleted(text(&event.data, "path").unwrap_or_default()),
            "RESET" if self.run_state.has_ended() => self.run_state = RunState::Paused,
            _ => {}
        }
        if let Some(event) = guest_event(event) {
            self.keep(event);
        }
    }

    fn note_deleted(&mut self, path: &str) {
        // Only vCPUs have one, and it goes with them.
        self.has_lost_vcpu |= path.ends_with("/lapic");
        if self.deleted_devices.len() < DELETED_DEVICES_MAX {
            self.deleted_devices.push(path.to_owned());
        }
    }

    /// The oldest events are dropped first: the newest determine the guest's state.
    fn keep(&mut self, event: GuestEvent) {
        if self.guest_events.len() == GUEST_EVENTS_MAX {
            self.guest_events.pop_front();
        }
        self.guest_events.push_back(event);
    }

    /// Tells QEMU to quit, and ends it if it does not.
    pub(super) fn quit(&mut self) {
        if !self.failed && self.qmp.execute("quit", &json!({})).is_ok() {
            self.process.wait(Duration::from_secs(5));
        }
        self.process.kill();
        self.failed = true;
    }

    fn explain(&mut self, error: QmpError) -> MachineError {
        match error {
            // It is attached again when it answers; an answer that comes late must not be taken for another one.
            QmpError::Timeout { .. } => {
                self.failed = true;
                self.qmp.close();
                MachineError::Driver { doing: format!("machine {}", self.name), message: error.to_string() }
            }
            QmpError::Closed(reason) if self.failed => {
                MachineError::Gone { machine: self.name.clone(), reason }
            }
            QmpError::Closed(reason) => {
                self.failed = true;
                let ended = self.process.wait(END_WAIT);
                let exit_reason = self.process.exit_reason();
                let reason = if ended { exit_reason } else { format!("{reason}; {exit_reason}") };
                MachineError::Gone { machine: self.name.clone(), reason }
            }
            other => {
                MachineError::Driver { doing: format!("machine {}", self.name), message: other.to_string() }
            }
        }
    }
}

/// A text field of an object.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}
