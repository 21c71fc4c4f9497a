use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::{Interface, LaunchSpec, MachineError, MachineState, ProcessIdentity, Vm};

/// Starts and finds the machines of one kind of virtual machine monitor.
///
/// To add one: implement this trait and [`Vm`] in a folder of its own, and add it to the [`Drivers`] of the program.
pub trait Driver: Send + Sync {
    /// Its name, as in [`LaunchSpec::driver`] and [`crate::MachineIdentity::driver`].
    fn name(&self) -> &'static str;

    /// What its machines can do that not every driver's can.
    fn features(&self) -> DriverFeatures;

    /// Whether this host can run machines of this driver; the error has the reason and what to do.
    fn check_host(&self) -> Result<(), MachineError>;

    /// Refuses a spec that [`Driver::launch`] would refuse, before anything is started or written.
    fn check(&self, spec: &LaunchSpec) -> Result<(), MachineError>;

    /// Starts a process and the machine in it. After a failure no process remains.
    fn launch(&self, launch: &Launch<'_>) -> Result<Box<dyn Vm>, MachineError>;

    /// The process that [`Driver::attach`] would attach to. Changes nothing in it.
    fn find(&self, attach: &Attach<'_>) -> Result<ProcessIdentity, MachineError>;

    /// Connects to a running process, which is independent. Does not change whether the guest runs.
    fn attach(&self, attach: &Attach<'_>) -> Result<Box<dyn Vm>, MachineError>;

    /// Whether that process still runs, even if it does not respond.
    fn is_alive(&self, process: &ProcessIdentity) -> bool;

    /// Ends that process if it still runs, without its cooperation.
    fn kill(&self, process: &ProcessIdentity) -> Result<(), MachineError>;
}

/// What the machines of a driver can do that not every driver's can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverFeatures {
    /// They can have network interfaces.
    pub networks: bool,
    /// [`Vm::renew_identity`] has an effect.
    pub renews_identity: bool,
    /// Whether a machine that awaits a state needs its kernel and initial RAM file system as well.
    pub restores_from_boot_files: bool,
}

/// A machine to be started.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The machine's name.
    pub name: &'a str,
    /// Its configuration.
    pub spec: &'a LaunchSpec,
    /// The folder for its sockets, overlays and logs; created if it does not exist.
    pub runtime_dir: &'a Path,
    /// How the guest starts.
    pub start: Start<'a>,
    /// The lifetime of its process.
    pub lifespan: Lifespan,
}

/// How the guest of a new process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    /// It boots.
    Boots,
    /// It is paused and waits for this state: the machine is to have the hardware that the state was taken from.
    AwaitsState(&'a MachineState),
}

/// The lifetime of a machine's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifespan {
    /// It ends when the machine is dropped or this program ends.
    Bound,
    /// It continues when the machine is dropped or this program ends.
    Independent,
    /// Bound until [`Vm::make_independent`] is called. A driver that cannot change this later takes `Independent`.
    BoundAtFirst,
}

/// A process to be attached to.
#[derive(Clone, Copy, Debug)]
pub struct Attach<'a> {
    /// The machine's name.
    pub name: &'a str,
    /// The socket of its monitor; `None` for the default place of [`Driver::launch`] in `runtime_dir`.
    pub socket: Option<&'a Path>,
    /// The folder of its sockets, overlays and logs.
    pub runtime_dir: &'a Path,
    /// The network interfaces with which it was started.
    pub interfaces: &'a [Interface],
}

/// The drivers of a program, the preferred one first.
#[derive(Clone, Default)]
pub struct Drivers(Vec<Arc<dyn Driver>>);

impl Drivers {
    /// No drivers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a driver that is less preferred than the earlier ones.
    #[must_use]
    pub fn with(mut self, driver: impl Driver + 'static) -> Self {
        self.0.push(Arc::new(driver));
        self
    }

    /// The driver of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Driver>> {
        self.0.iter().find(|driver| driver.name() == name)
    }

    /// The first driver whose machines this host can run, which is the meaning of the name `auto`.
    #[must_use]
    pub fn preferred(&self) -> Option<&Arc<dyn Driver>> {
        self.0.iter().find(|driver| driver.check_host().is_ok())
    }

    /// The names of all drivers, the preferred one first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|driver| driver.name())
    }
}

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
