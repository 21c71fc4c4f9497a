use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use retrovisor_guest::Vm;

use crate::driver_calls::{CallWait, DriverCalls};
use crate::watched_vm::WatchedVm;

/// Owns the machine of an actor. Until [`ProcessGuard::keep`] is called, dropping it undoes what was done to bring the machine
/// up, so that no way out of a failed start leaves a process or anything in a process that was attached to.
pub(crate) struct ProcessGuard {
    /// Present until this is consumed or dropped.
    vm: Option<Box<dyn Vm>>,
    calls: Arc<DriverCalls>,
    undo: Undo,
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
        Self { vm: Some(Box::new(WatchedVm::new(vm, Arc::clone(&calls)))), calls, undo }
    }

    /// The calls of its driver.
    pub(crate) fn calls(&self) -> &Arc<DriverCalls> {
        &self.calls
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
        match self.undo {
            Undo::Quit => vm.quit(),
            Undo::Detach => {
                let name = vm.identity().name.clone();
                if let Err(error) = vm.detach(true) {
                    tracing::warn!(machine = name, %error, "a process that could not be managed keeps something");
                }
            }
            Undo::Disconnect => drop(vm),
        }
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
