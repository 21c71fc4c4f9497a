/// Whether the guest's vCPUs run, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// vCPUs are stopped and devices are quiet. [`crate::Machine::resume`] sets them running.
    Paused,
    /// The guest shut down, or one of its vCPUs cannot go on. The VM is still there: memory can be read, and
    /// [`crate::StateIo::apply_state`] brings the guest back in place.
    PoweredOff,
    /// The guest reported that its kernel panicked, and was stopped for it. As with `PoweredOff`, the VM is still there.
    Panicked,
    /// The process behind the machine ended or cannot be reached. The guest comes back in a new machine only.
    Gone,
}

impl RunState {
    /// Whether the guest cannot run on from what it is now: another state must be applied, in place or in a new machine.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::PoweredOff | Self::Panicked | Self::Gone)
    }
}
