//! QEMU's monitor as the driver uses it: commands and jobs that say what is wrong with the machine, and its events.

use std::time::Duration;

use retrovisor_guest::{MachineError, ProcessIdentity};
use serde_json::{Value, json};

use super::event::GuestEvent;
use super::message::Event;
use super::message::Version;
use super::qmp::Qmp;
use crate::error::QmpError;
use crate::process::Process;

/// How long saving or loading a state may take.
const JOB_WAIT: Duration = Duration::from_mins(2);
/// How long a process whose socket closed may take to end.
const END_WAIT: Duration = Duration::from_secs(2);
/// Guest events kept while nobody asks for them.
const GUEST_EVENTS_MAX: usize = 256;

pub(super) struct Monitor {
    /// The machine's name, for messages.
    name: String,
    qmp: Qmp,
    process: Process,
    running: bool,
    /// The guest shut down, and QEMU keeps it standing.
    shut_down: bool,
    guest_events: Vec<GuestEvent>,
    jobs: u64,
    /// The socket or the process is gone.
    broken: bool,
}

impl Monitor {
    pub(super) fn new(name: &str, qmp: Qmp, process: Process) -> Result<Self, MachineError> {
        let mut monitor = Self {
            name: name.to_owned(),
            qmp,
            process,
            running: false,
            shut_down: false,
            guest_events: Vec::new(),
            jobs: 0,
            broken: false,
        };
        let status = monitor.execute("query-status", &json!({}))?;
        monitor.running = status.get("running") == Some(&Value::Bool(true));
        monitor.shut_down = matches!(text(&status, "status"), Some("shutdown" | "internal-error"));
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

    /// Whether vCPUs run, as far as the events that were read say.
    pub(super) fn running(&self) -> bool {
        self.running
    }

    pub(super) fn shut_down(&self) -> bool {
        self.shut_down
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

    /// Runs a job to its end. `arguments` lack the job's name.
    pub(super) fn job(&mut self, command: &str, mut arguments: Value) -> Result<(), MachineError> {
        self.jobs += 1;
        let id = format!("rv-{}-{}", std::process::id(), self.jobs);
        arguments["job-id"] = id.clone().into();
        self.run_job(command, &arguments, &id).map_err(|error| self.explain(error))
    }

    fn run_job(&mut self, command: &str, arguments: &Value, id: &str) -> Result<(), QmpError> {
        // Events of earlier jobs would only be searched again and again.
        let _ = self.read_events();
        self.qmp.execute(command, arguments)?;
        self.qmp.wait_event(command, JOB_WAIT, |event| {
            event.name == "JOB_STATUS_CHANGE"
                && text(&event.data, "id") == Some(id)
                && text(&event.data, "status") == Some("concluded")
        })?;
        // Both at once; the second answer is passed over when it comes.
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

    /// Stops the vCPUs and lets devices come to rest.
    pub(super) fn stop(&mut self) -> Result<(), MachineError> {
        self.execute("stop", &json!({}))?;
        self.read_events()?;
        self.running = false;
        Ok(())
    }

    /// Lets the vCPUs run.
    pub(super) fn cont(&mut self) -> Result<(), MachineError> {
        self.execute("cont", &json!({}))?;
        self.running = true;
        self.read_events()
    }

    /// Out of the state after a shutdown, in which nothing can run again. Memory stays as it is.
    pub(super) fn reset(&mut self) -> Result<(), MachineError> {
        self.execute("system_reset", &json!({}))?;
        let done = self.qmp.wait_event("system_reset", JOB_WAIT, |event| event.name == "RESET");
        done.map_err(|error| self.explain(error))?;
        self.shut_down = false;
        Ok(())
    }

    /// Reads the events that came, and gives those that concern the guest since the last call.
    pub(super) fn guest_events(&mut self) -> Vec<GuestEvent> {
        let _ = self.read_events();
        std::mem::take(&mut self.guest_events)
    }

    /// Whether QEMU still stands, after a look at what came.
    pub(super) fn alive(&mut self) -> bool {
        let _ = self.read_events();
        if self.process.ended() {
            self.broken = true;
        }
        !self.broken
    }

    /// Reads the events that came and keeps account of what they say.
    pub(super) fn read_events(&mut self) -> Result<(), MachineError> {
        let (events, end) = self.qmp.drain_events();
        for event in events {
            self.note(&event);
        }
        end.map_err(|error| self.explain(error))
    }

    fn note(&mut self, event: &Event) {
        match event.name.as_str() {
            "STOP" => self.running = false,
            "RESUME" => (self.running, self.shut_down) = (true, false),
            _ => {}
        }
        if let Some(event) = GuestEvent::of(event) {
            if matches!(event, GuestEvent::Shutdown { .. }) {
                self.shut_down = true;
            }
            if self.guest_events.len() < GUEST_EVENTS_MAX {
                self.guest_events.push(event);
            }
        }
    }

    /// Asks QEMU to end, and ends it when it does not.
    pub(super) fn quit(&mut self) {
        if !self.broken && self.qmp.execute("quit", &json!({})).is_ok() {
            self.process.wait(Duration::from_secs(5));
        }
        self.process.kill();
        self.broken = true;
    }

    fn explain(&mut self, error: QmpError) -> MachineError {
        match error {
            QmpError::Closed(reason) => {
                self.broken = true;
                self.running = false;
                let ended = self.process.wait(END_WAIT);
                let obituary = self.process.obituary();
                let reason = if ended { obituary } else { format!("{reason}; {obituary}") };
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
