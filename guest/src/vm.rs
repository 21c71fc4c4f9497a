use std::path::PathBuf;

use crate::{Machine, MachineError, ProcessIdentity};

/// A machine that runs in a process of its own: what managing it needs beyond [`Machine`].
///
/// Dropping it ends the process, unless the process is independent ([`crate::Lifespan`]).
pub trait Vm: Machine {
    /// The process: constant while the machine lives.
    fn process(&self) -> ProcessIdentity;

    /// The socket of its first serial port.
    fn console(&self) -> Option<PathBuf> {
        None
    }

    /// The file that keeps what the guest writes there.
    fn console_log(&self) -> Option<PathBuf> {
        None
    }

    /// The port at which the guest may serve a shell.
    fn control_port(&self) -> Option<ControlPort> {
        None
    }

    /// Whether the links of its network interfaces are up, in order; empty when that is not known.
    fn links(&self) -> Vec<bool> {
        Vec::new()
    }

    /// How dirty frames are found.
    fn dirty_finder(&self) -> DirtyFinder;

    /// How its process is confined, in words; empty when Retrovisor did not start it.
    fn confinement(&self) -> String {
        String::new()
    }

    /// Tells a guest whose state came from another machine that it is another machine now, so that it draws other random
    /// numbers. Needs the machine paused. Does nothing where the driver has no means for it
    /// ([`crate::DriverFeatures::renews_identity`]).
    fn renew_identity(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Makes the process independent: it goes on when this machine is dropped, or this program ends.
    fn make_independent(&mut self) -> Result<(), MachineError>;

    /// Removes from the process what was put into it beyond the machine itself (block nodes, descriptors, capabilities), and
    /// ends the connection: the process is independent. With `deletes_snapshots`, also the disks' contents that were
    /// retained for captured states. Everything is tried; what could not be removed is in the error.
    fn detach(mut self: Box<Self>, deletes_snapshots: bool) -> Result<(), MachineError> {
        let _ = deletes_snapshots;
        self.make_independent()
    }

    /// Ends the process, also an independent one, and waits until it is gone.
    fn quit(self: Box<Self>);
}

/// A port at which a guest may serve a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPort {
    /// Its socket on the host.
    pub socket: PathBuf,
    /// The terminal that it is in the guest.
    pub terminal: &'static str,
}

/// How a driver finds dirty frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyFinder {
    /// Its name.
    pub name: &'static str,
    /// Why this one.
    pub reason: String,
}
