//! Asking the actor of a machine, and what becomes of one that does not answer.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

use crate::actor::ActorHandle;
use crate::command::Command;
use crate::error::ManagerError;
use crate::event::{self, EventKind};
use crate::lifecycle::Lifecycle;
use crate::manager::Manager;
use crate::status::MachineStatus;

/// How often a caller that waits for an answer looks whether the machine still answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long an actor that lost its machine may take to end.
const LOST_WAIT: Duration = Duration::from_secs(5);

impl Manager {
    /// Sends a command to a machine's actor and waits for the answer. A machine without an actor refuses every command.
    ///
    /// The wait ends with an error when a call of the machine's driver does not return in time. A command that was begun
    /// is finished if that call returns after all, and one that was not is dropped.
    pub async fn ask<T>(
        &self,
        name: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, ManagerError>>) -> Command,
    ) -> Result<T, ManagerError> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let kind = command.kind();
        let is_sent = {
            let actors = self.actors();
            actors
                .get(name)
                .filter(|actor| actor.accepts_commands())
                .is_some_and(|actor| actor.send(command).is_ok())
        };
        if !is_sent {
            let status = self.status(name)?;
            return Err(match kind {
                Some(kind) => ManagerError::refused(name, &status, kind),
                None => ManagerError::Gone { machine: name.to_owned() },
            });
        }
        match self.wait_for_answer(name, answer).await {
            Some(Ok(answer)) => return answer,
            // The actor ends, and says why when it has.
            Some(Err(_)) => self.wait_for_end(name, |_| true).await,
            None => {}
        }
        Err(ManagerError::unanswered(name, &self.status(name)?))
    }

    /// Waits for what an actor answers; `None` when its driver does not return in time.
    async fn wait_for_answer<T>(
        &self,
        name: &str,
        mut answer: oneshot::Receiver<T>,
    ) -> Option<Result<T, RecvError>> {
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK_INTERVAL, &mut answer).await {
                return Some(answer);
            }
            if self.actors().get(name).is_some_and(|actor| actor.overdue().is_some()) {
                self.report_overdue();
                return None;
            }
        }
    }

    /// Reports the machines whose driver does not return in time, and those whose driver has returned after all.
    pub(crate) fn report_overdue(&self) {
        let changed: Vec<_> = {
            let actors = self.actors();
            let changed = actors.iter().map(|(name, actor)| (name.clone(), actor.changed_overdue()));
            changed.filter_map(|(name, status)| Some((name, status?))).collect()
        };
        for (name, status) in changed {
            let reason = if status.reason.is_empty() { "its process answers again" } else { &status.reason };
            let kind = EventKind::State(status.state, reason.to_owned());
            match self.store.catalogue().machine(&name) {
                Ok(record) => event::keep(&self.store, record.id, &kind),
                Err(error) => tracing::warn!(machine = name, %error, "an event is not kept"),
            }
            event::emit(&self.events, &name, kind);
        }
    }

    /// Machines whose actor ended because their process does not answer, with their status.
    pub(crate) fn lost(&self) -> Vec<(String, MachineStatus)> {
        let lost: Vec<_> = self
            .actors()
            .iter()
            .filter(|(_, actor)| actor.overdue().is_none())
            .map(|(name, actor)| (name.clone(), actor.status()))
            .filter(|(_, status)| status.state == Lifecycle::Unreachable)
            .collect();
        for (name, _) in &lost {
            self.wait_for_lost(name);
        }
        lost
    }

    /// An actor that lost its machine ends at once, but for what is being stored: waits for that.
    pub(crate) fn wait_for_lost(&self, name: &str) {
        let deadline = Instant::now() + LOST_WAIT;
        let is_ending = || self.actors().get(name).is_some_and(ActorHandle::is_ending);
        while is_ending() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The same, without a thread that waits.
    pub(crate) async fn end_of_lost(&self, name: &str) {
        self.wait_for_end(name, ActorHandle::is_ending).await;
    }

    /// Waits for the end of an actor for a while, if it is as `filter` says.
    pub(crate) async fn wait_for_end(&self, name: &str, filter: impl FnOnce(&ActorHandle) -> bool) {
        let end = self.actors().get(name).filter(|actor| filter(actor)).map(ActorHandle::end);
        if let Some(mut end) = end {
            let _ = tokio::time::timeout(LOST_WAIT, end.wait_for(|has_ended| *has_ended)).await;
        }
    }
}
