use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use retrovisor_guest::{RunState, Vm};

use crate::driver_calls::{CallWait, DriverCalls};
use crate::panics;
use crate::watched_vm::WatchedVm;

/// Owns the machine of an actor. Until [`ProcessGuard::keep`] is called, dropping it undoes what was done to bring the machine
/// up, so that no way out of a failed start leaves a process or anything in a process that was attached to.
pub(crate) struct ProcessGuard {
    /// Present until this is consumed or dropped.
    vm: Option<Box<dyn Vm>>,
    calls: Arc<DriverCalls>,
    undo: Undo,
    /// Whether the guest ran before anything was done to it.
    ran: bool,
}

/// What dropping a guard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Ends the process.
    Quit,
    /// Removes from the process what attaching put into it.
    Detach,
    /// Ends the connection only.
    Disconnect,
}

impl ProcessGuard {
    pub(crate) fn new(vm: Box<dyn Vm>, undo: Undo, wait: &CallWait) -> Self {
        let calls = Arc::new(DriverCalls::new(wait.clone()));
        Self { vm: Some(Box::new(WatchedVm::new(vm, Arc::clone(&calls)))), calls, undo, ran: false }
    }

    /// The calls of its driver.
    pub(crate) fn calls(&self) -> &Arc<DriverCalls> {
        &self.calls
    }

    /// The guest ran when it was attached to, so that it must run when it is given back.
    pub(crate) fn found_running(&mut self) {
        self.ran = true;
    }

    /// The machine is up: from now on dropping this only ends the connection.
    pub(crate) fn keep(&mut self) {
        self.undo = Undo::Disconnect;
    }

    pub(crate) fn into_inner(mut self) -> Box<dyn Vm> {
        self.vm.take().expect("present until it is consumed")
    }
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        let Some(vm) = self.vm.take() else { return };
        let (undo, ran) = (self.undo, self.ran);
        // A panic of the driver may be why this is dropped: a second one would end the daemon.
        let undone = catch_unwind(AssertUnwindSafe(|| match undo {
            Undo::Quit => vm.quit(),
            Undo::Detach => give_back(vm, ran),
            Undo::Disconnect => drop(vm),
        }));
        if let Err(panic) = undone {
            tracing::error!(
                "a process that could not be managed keeps something: {}",
                panics::message(&*panic)
            );
        }
    }
}

/// Leaves a process that was attached to as it was found.
fn give_back(mut vm: Box<dyn Vm>, ran: bool) {
    let name = vm.identity().name.clone();
    let resumed = if ran && vm.run_state() == RunState::Paused { vm.resume() } else { Ok(()) };
    if let Err(error) = vm.detach(true).and(resumed) {
        tracing::warn!(machine = name, %error, "a process that could not be managed is not as it was found");
    }
}

impl Deref for ProcessGuard {
    type Target = dyn Vm;

    fn deref(&self) -> &Self::Target {
        &**self.vm.as_ref().expect("present until it is consumed")
    }
}

impl DerefMut for ProcessGuard {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut **self.vm.as_mut().expect("present until it is consumed")
    }
}
