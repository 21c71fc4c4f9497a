use std::path::PathBuf;

use crate::{Machine, MachineError, ProcessIdentity};

/// A machine that runs in a process of its own: the operations beyond [`Machine`] that managing it needs.
///
/// Dropping it ends the process, unless the process is independent ([`crate::Lifespan`]).
pub trait Vm: Machine {
    /// The process: constant for the lifetime of the machine.
    fn process(&self) -> ProcessIdentity;

    /// The socket of its first serial port.
    fn console(&self) -> Option<PathBuf> {
        None
    }

    /// The file with the output of that port.
    fn console_log(&self) -> Option<PathBuf> {
        None
    }

    /// The port at which the guest may run a shell.
    fn control_port(&self) -> Option<ControlPort> {
        None
    }

    /// Whether the links of its network interfaces are up, in order; empty if unknown.
    fn links(&self) -> Vec<bool> {
        Vec::new()
    }

    /// How dirty frames are found.
    fn dirty_finder(&self) -> DirtyFinder;

    /// The confinement of its process as text; empty if Retrovisor did not start it.
    fn confinement(&self) -> String {
        String::new()
    }

    /// Notifies a guest whose state came from another machine that it is now a different machine, so that it generates
    /// other random numbers. Needs the machine paused. Does nothing if the driver cannot do it
    /// ([`crate::DriverFeatures::renews_identity`]).
    fn renew_identity(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Makes the process independent: it continues when this machine is dropped, or this program ends.
    fn make_independent(&mut self) -> Result<(), MachineError>;

    /// Removes everything that was added to the process (block nodes, descriptors, capabilities), and ends the
    /// connection: the process is then independent. With `deletes_snapshots`, also removes the disk contents retained
    /// for captured states. Every step is tried; the error has what could not be removed.
    fn detach(mut self: Box<Self>, deletes_snapshots: bool) -> Result<(), MachineError> {
        let _ = deletes_snapshots;
        self.make_independent()
    }

    /// Ends the process, also an independent one, and waits for its end.
    fn quit(self: Box<Self>);
}

/// A port at which a guest may run a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPort {
    /// Its socket on the host.
    pub socket: PathBuf,
    /// The terminal in the guest.
    pub terminal: &'static str,
}

/// How a driver finds dirty frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyFinder {
    /// Its name.
    pub name: &'static str,
    /// Why it was chosen.
    pub reason: String,
}
