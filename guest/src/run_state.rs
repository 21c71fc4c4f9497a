/// Whether the guest's vCPUs run, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// vCPUs are stopped and devices are quiescent. [`crate::Machine::resume`] starts them.
    Paused,
    /// The guest shut down, or one of its vCPUs cannot continue. The VM still exists: memory can be read, and
    /// [`crate::StateIo::apply_state`] restores the guest in place.
    PoweredOff,
    /// The guest reported that its kernel panicked, and was stopped. As with `PoweredOff`, the VM still exists.
    Panicked,
    /// The process of the machine ended or cannot be reached. The guest can continue only in a new machine.
    Gone,
}

impl RunState {
    /// Whether the guest cannot continue: another state must be applied, in place or in a new machine.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::PoweredOff | Self::Panicked | Self::Gone)
    }
}
