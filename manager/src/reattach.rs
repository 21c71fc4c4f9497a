//! Attaching machines again that still run: after a restart of the daemon, and when one could not be reached.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use retrovisor_snapshot::{DesiredState, MachineRecord};

use crate::actor::ActorHandle;
use crate::arrival::Arrival;
use crate::error::ManagerError;
use crate::event::{self, EventKind};
use crate::lifecycle::{CommandKind, Lifecycle};
use crate::manager::{Manager, lock};
use crate::panics;
use crate::process_guard::{ProcessGuard, Undo};
use crate::spec::MachineSpec;
use crate::status::MachineStatus;

/// How often machines that could not be reached are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a machine that is attached again is waited for before the next one is.
const ATTACH_WAIT: Duration = Duration::from_secs(10);

/// What came of an attempt.
enum Outcome {
    /// It is managed again.
    Attached,
    /// It has no process, or is not to be managed.
    Nothing,
    /// Its process is there and cannot be attached to.
    Unreachable(String),
}

impl Manager {
    /// After a restart of the daemon: attaches the machines that still run. One that has a process that cannot be attached to
    /// is unreachable, and tried again every few seconds. Returns one line each for the user.
    ///
    /// Whatever the stored data of one machine does, the others are attached.
    pub fn reattach_all(self: &Arc<Self>) -> Vec<String> {
        let mut lines = self.remove_incomplete_branches();
        let records = match self.store.catalogue().machines() {
            Ok(records) => records,
            Err(error) => {
                lines.push(format!("cannot list the machines: {error}"));
                return lines;
            }
        };
        for record in records {
            let name = record.name.clone();
            match self.in_time(&name, move |manager| manager.reattach(&record)) {
                Some(Outcome::Attached) => lines.push(format!("{name} still runs and is managed again")),
                Some(Outcome::Nothing) => {}
                Some(Outcome::Unreachable(why)) => {
                    lines.push(format!("{name} still runs, but cannot be attached: {why}"));
                }
                None => lines.push(format!("{name} is still being attached")),
            }
        }
        let manager = Arc::downgrade(self);
        let retries = std::thread::Builder::new().name("reattach".to_owned()).spawn(move || retry(&manager));
        if let Err(error) = retries {
            lines.push(format!("machines that cannot be reached are not tried again: {error}"));
        }
        lines
    }

    /// Does something with a machine in a thread of its own, and waits for it for a while: a driver that does not
    /// return delays the other machines no longer than that. `None` if it is not done yet; it goes on.
    pub(crate) fn in_time<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let manager = Arc::clone(self);
        let thread = move || {
            let done = work(&manager);
            // First, so that who waits for the result may be the last who has the manager.
            drop(manager);
            // It may not be waited for any more.
            drop(sender.send(done));
        };
        if let Err(error) = std::thread::Builder::new().name(format!("attach-{name}")).spawn(thread) {
            tracing::error!(machine = name, %error, "cannot start a thread");
            return None;
        }
        receiver.recv_timeout(ATTACH_WAIT.min(self.call_wait.get())).ok()
    }

    /// Attaches a machine of the store if its process still runs.
    fn reattach(&self, record: &MachineRecord) -> Outcome {
        let attached = catch_unwind(AssertUnwindSafe(|| self.try_reattach(record)));
        let outcome = match attached {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Unreachable(error.to_string()),
            Err(panic) => Outcome::Unreachable(format!("an internal error: {}", panics::message(&*panic))),
        };
        match &outcome {
            Outcome::Attached => {}
            Outcome::Nothing => {
                lock(&self.unreachable).remove(&record.name);
            }
            Outcome::Unreachable(why) => {
                self.forget_ended(&record.name);
                let spec = MachineSpec::from_runtime(&record.name, &record.runtime).ok();
                let (every_ms, process) = spec.map_or((0, None), |spec| (spec.every_ms, spec.process));
                let status =
                    MachineStatus::without_actor(Lifecycle::Unreachable, why.clone(), every_ms, process);
                lock(&self.unreachable).insert(record.name.clone(), status);
            }
        }
        outcome
    }

    fn try_reattach(&self, record: &MachineRecord) -> Result<Outcome, ManagerError> {
        let name = &record.name;
        // An imported machine has none.
        let Ok(spec) = MachineSpec::from_runtime(name, &record.runtime) else { return Ok(Outcome::Nothing) };
        if spec.is_released {
            return Ok(Outcome::Nothing);
        }
        let driver = self.driver(spec.driver())?;
        let is_alive = spec.process.as_ref().is_some_and(|process| driver.is_alive(process));
        let found = match (self.find(name, &spec), &spec.process) {
            (Err(_), _) if !is_alive => return Ok(Outcome::Nothing),
            (Err(error), _) => return Ok(Outcome::Unreachable(error.to_string())),
            // Another process listens at the socket now: another guest, or the same one started again.
            (Ok(found), Some(process)) if found != *process => {
                return Ok(if is_alive {
                    Outcome::Unreachable(format!(
                        "process {} answers at the socket of process {}",
                        found.pid, process.pid
                    ))
                } else {
                    tracing::warn!(
                        machine = name,
                        "process {} ended, and process {} is another one",
                        process.pid,
                        found.pid
                    );
                    Outcome::Nothing
                });
            }
            (Ok(found), _) => found,
        };
        let _reservation = self.reserve(name, CommandKind::Attach, Some(&found))?;
        let vm = ProcessGuard::new(self.connect(name, &spec)?, Undo::Disconnect, &self.call_wait);
        let half_written = self.half_written(record, &found)?;
        match self.bring_up(vm, &spec, Arrival::Reattached { half_written }, None) {
            Ok(_) => Ok(Outcome::Attached),
            Err(ManagerError::Gone { .. }) => Ok(Outcome::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Tries to attach the machines that could not be reached, at once. [`Self::reattach_all`] has this done every few seconds.
    pub fn retry_unreachable(self: &Arc<Self>) {
        self.report_overdue();
        for (name, status) in self.lost() {
            self.forget_ended(&name);
            // One that answered again meanwhile has its actor.
            if !self.actors().contains_key(&name) {
                lock(&self.unreachable).entry(name).or_insert(status);
            }
        }
        let names: Vec<_> = lock(&self.unreachable).keys().cloned().collect();
        for name in names {
            if self.is_ending.load(Ordering::Acquire) {
                return;
            }
            // An earlier attempt may not be done yet.
            if lock(&self.reservations).names.contains(&name) {
                continue;
            }
            let Ok(record) = self.store.catalogue().machine(&name) else { continue };
            let _ = self.in_time(&name, move |manager| manager.retry(&record));
        }
    }

    /// Tries to attach a machine that could not be reached.
    fn retry(&self, record: &MachineRecord) {
        let (state, reason) = match self.reattach(record) {
            Outcome::Attached => match self.status(&record.name) {
                Ok(status) => (status.state, "its process answers again"),
                Err(_) => return,
            },
            Outcome::Nothing => (Lifecycle::Gone, "its process ended"),
            Outcome::Unreachable(_) => return,
        };
        let kind = EventKind::State(state, reason.to_owned());
        event::keep(&self.store, record.id, &kind);
        event::emit(&self.events, &record.name, kind);
    }

    /// Ends the process of a machine that does not answer.
    pub(crate) async fn kill_unreachable(
        &self,
        name: &str,
        status: &MachineStatus,
    ) -> Result<(), ManagerError> {
        let record = self.store.catalogue().machine(name)?;
        let spec = MachineSpec::from_runtime(name, &record.runtime)?;
        if let Some(process) = status.process.as_ref().or(spec.process.as_ref()) {
            self.driver(spec.driver())?.kill(process)?;
        }
        // A call that waited for the process returns with its end.
        self.wait_for_end(name, ActorHandle::is_alive).await;
        if self.actors().get(name).is_some_and(ActorHandle::is_alive) {
            return Err(ManagerError::Refused {
                what: format!("the process of {name} was ended, but {}", self.status(name)?.reason),
                help: "It is gone when that call returns, or when the daemon is started again.".to_owned(),
            });
        }
        lock(&self.unreachable).remove(name);
        self.forget_ended(name);
        Ok(self.store.catalogue().set_desired_state(record.id, DesiredState::Stopped)?)
    }
}

/// Runs until the manager is dropped or ends.
fn retry(manager: &Weak<Manager>) {
    loop {
        std::thread::sleep(RETRY_INTERVAL);
        let Some(manager) = manager.upgrade() else { return };
        if manager.is_ending.load(Ordering::Acquire) {
            return;
        }
        manager.retry_unreachable();
    }
}
