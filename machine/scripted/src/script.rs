use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use retrovisor_guest::{GuestEvent, MachineError, RunState};

/// A call of a machine, or of the driver that has it, that a script can act on. A [`crate::MemoryMachine`] makes those of
/// `Machine`; a driver in memory makes the others with [`Script::call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of that name of `Driver`, `Vm`, or a supertrait of that")]
pub enum Method {
    RunState,
    Pause,
    Resume,
    Events,
    TakeDirty,
    WritePage,
    WriteLines,
    CheckDevices,
    CaptureState,
    SyncState,
    CheckState,
    ApplyState,
    ReleaseState,
    DiskChanges,
    DiskBlocks,
    RetainedDisks,
    WriteBlocks,
    Launch,
    Find,
    Attach,
    Kill,
    RenewIdentity,
    MakeIndependent,
    Detach,
    Quit,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::RunState,
        Self::Pause,
        Self::Resume,
        Self::Events,
        Self::TakeDirty,
        Self::WritePage,
        Self::WriteLines,
        Self::CheckDevices,
        Self::CaptureState,
        Self::SyncState,
        Self::CheckState,
        Self::ApplyState,
        Self::ReleaseState,
        Self::DiskChanges,
        Self::DiskBlocks,
        Self::RetainedDisks,
        Self::WriteBlocks,
        Self::Launch,
        Self::Find,
        Self::Attach,
        Self::Kill,
        Self::RenewIdentity,
        Self::MakeIndependent,
        Self::Detach,
        Self::Quit,
    ];
}

/// The scripted behaviour of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fails before it does anything. `run_state` answers [`RunState::Gone`], and `events` nothing.
    Fail,
    /// Does its work, and fails then.
    FailAfter,
    /// Waits for [`Script::release`], or until the machine is [`RunState::Gone`], and does its work then.
    Hang,
    /// Panics before it does anything.
    Panic,
    /// Does its work in a machine that is in this state from then on.
    Enter(RunState),
}

/// The script of a [`crate::MemoryMachine`]: shared by all copies, also while another thread has the machine.
#[derive(Clone)]
pub struct Script(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    run_state: RunState,
    /// By number of the method.
    calls: [u64; Method::ALL.len()],
    /// The number of the call to act on, counted from the first.
    actions: Vec<(Method, u64, Action)>,
    events: Vec<GuestEvent>,
    hanging: Option<Method>,
    /// Times that hanging calls were released.
    released: u64,
}

impl Default for Script {
    /// Of a machine that runs.
    fn default() -> Self {
        Self::new(RunState::Running)
    }
}

impl Script {
    pub(crate) fn new(run_state: RunState) -> Self {
        let inner = Inner {
            run_state,
            calls: [0; Method::ALL.len()],
            actions: Vec::new(),
            events: Vec::new(),
            hanging: None,
            released: 0,
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() }))
    }

    /// Applies to the `nth` call of a method from now on; 1 is the next one.
    pub fn on(&self, method: Method, nth: u64, action: Action) {
        let mut inner = self.lock();
        let call = inner.calls[method as usize] + nth;
        inner.actions.push((method, call, action));
    }

    /// Drops the actions that were not due yet.
    pub fn clear(&self) {
        self.lock().actions.clear();
    }

    /// How often a method was called.
    #[must_use]
    pub fn calls(&self, method: Method) -> u64 {
        self.lock().calls[method as usize]
    }

    /// The machine's run state, as far as the script knows without calling it.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        self.lock().run_state
    }

    /// Changes the run state at once, as when a guest switches itself off between two calls.
    pub fn enter(&self, run_state: RunState) {
        self.lock().run_state = run_state;
        self.0.changed.notify_all();
    }

    /// Adds events that [`retrovisor_guest::Machine::events`] returns next.
    pub fn report(&self, event: GuestEvent) {
        self.lock().events.push(event);
    }

    /// Waits until a call hangs; `None` when none does in time.
    #[must_use]
    pub fn wait_hanging(&self, patience: Duration) -> Option<Method> {
        let inner = self.lock();
        let waited = self.0.changed.wait_timeout_while(inner, patience, |inner| inner.hanging.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.hanging
    }

    /// Lets a call that hangs continue.
    pub fn release(&self) {
        self.lock().released += 1;
        self.0.changed.notify_all();
    }

    /// A call begins. Returns an error to end it; otherwise whether it must fail after its work.
    pub(crate) fn begin(&self, method: Method) -> Result<bool, MachineError> {
        let mut inner = self.lock();
        inner.calls[method as usize] += 1;
        let call = inner.calls[method as usize];
        let due = inner.actions.iter().position(|(of, at, _)| *of == method && *at == call);
        let action = due.map(|at| inner.actions.remove(at).2);
        match action {
            None => Ok(false),
            Some(Action::Fail) => Err(failure(method)),
            Some(Action::FailAfter) => Ok(true),
            Some(Action::Enter(run_state)) => {
                inner.run_state = run_state;
                self.0.changed.notify_all();
                Ok(false)
            }
            Some(Action::Hang) => {
                let released = inner.released;
                inner.hanging = Some(method);
                self.0.changed.notify_all();
                let waited = self.0.changed.wait_while(inner, |inner| {
                    inner.released == released && inner.run_state != RunState::Gone
                });
                waited.unwrap_or_else(PoisonError::into_inner).hanging = None;
                Ok(false)
            }
            Some(Action::Panic) => {
                drop(inner);
                panic!("the script has {method:?} panic");
            }
        }
    }

    /// Calls `work` as the script has it.
    pub fn call<T>(
        &self,
        method: Method,
        work: impl FnOnce() -> Result<T, MachineError>,
    ) -> Result<T, MachineError> {
        let fails_after = self.begin(method)?;
        let done = work()?;
        if fails_after { Err(failure(method)) } else { Ok(done) }
    }

    /// Calls `use_it` with the lock held while the machine runs, and waits for that before.
    pub(crate) fn while_running<T>(&self, use_it: impl FnOnce() -> T) -> T {
        let inner = self.lock();
        let waited = self.0.changed.wait_while(inner, |inner| inner.run_state != RunState::Running);
        let _running = waited.unwrap_or_else(PoisonError::into_inner);
        use_it()
    }

    pub(crate) fn take_events(&self) -> Vec<GuestEvent> {
        std::mem::take(&mut self.lock().events)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is whole after every line above, also when a thread panicked.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failure(method: Method) -> MachineError {
    MachineError::Driver { doing: format!("{method:?}"), message: "the script has it fail".into() }
}
