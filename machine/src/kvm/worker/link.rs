use std::os::fd::BorrowedFd;
use std::time::Duration;

use retrovisor_guest::MachineError;

use super::channel::Channel;
use super::message::{Answer, Request};
use crate::process::Process;

/// The connection to a worker.
pub(super) struct Link {
    machine: String,
    channel: Channel,
    process: Process,
    /// Why the worker cannot be used any more.
    lost: Option<String>,
}

impl Link {
    pub(super) fn new(machine: &str, channel: Channel, process: Process) -> Self {
        Self { machine: machine.to_owned(), channel, process, lost: None }
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Checks whether the process still exists.
    pub(super) fn check_process(&mut self) {
        if self.lost.is_none() && self.process.ended() {
            self.mark_lost("");
        }
    }

    /// Sends a request, and waits for the reply, whose body has at most `body_bytes_max` bytes. Passes it to
    /// `use_answer`, which returns `None` when it is not a reply to this request.
    pub(super) fn ask<T>(
        &mut self,
        doing: &'static str,
        request: &Request,
        body: &[&[u8]],
        body_bytes_max: usize,
        use_answer: impl FnOnce(Answer, &[u8]) -> Option<T>,
    ) -> Result<T, MachineError> {
        self.ask_with(doing, request, (body, &[]), body_bytes_max, use_answer)
    }

    /// The same, with a body and descriptors.
    pub(super) fn ask_with<T>(
        &mut self,
        doing: &'static str,
        request: &Request,
        (body, fds): (&[&[u8]], &[BorrowedFd<'_>]),
        body_bytes_max: usize,
        use_answer: impl FnOnce(Answer, &[u8]) -> Option<T>,
    ) -> Result<T, MachineError> {
        if let Some(reason) = &self.lost {
            return Err(self.gone(reason.clone()));
        }
        let sent = self.channel.send(request, body, fds);
        let received = sent.and_then(|()| self.channel.receive::<Answer>(body_bytes_max));
        match received {
            Ok(Some(received)) => {
                let used = match received.head {
                    Answer::Failed(failure) => return Err(failure.of(&self.machine, doing)),
                    other => use_answer(other, self.channel.bytes(received.body)),
                };
                used.ok_or_else(|| self.mark_lost(&format!("the worker sent an invalid answer when {doing}")))
            }
            Ok(None) => Err(self.mark_lost("")),
            Err(error) => Err(self.mark_lost(&format!("{doing}: {error}"))),
        }
    }

    fn gone(&self, reason: String) -> MachineError {
        MachineError::Gone { machine: self.machine.clone(), reason }
    }

    /// Marks the worker as lost and ends it: its replies are not reliable.
    fn mark_lost(&mut self, why: &str) -> MachineError {
        // A worker that crashed ends on its own.
        self.process.wait(Duration::from_millis(if why.is_empty() { 1000 } else { 100 }));
        let mut reason = self.process.exit_reason();
        if !self.process.ended() {
            self.process.kill();
            reason = format!("{why}; it was ended");
        }
        self.lost = Some(reason.clone());
        self.gone(reason)
    }
}
