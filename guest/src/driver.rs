use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::{Interface, LaunchSpec, MachineError, ProcessIdentity, Vm};

/// Starts and finds the machines of one kind of virtual machine monitor.
///
/// To add one: implement this trait and [`Vm`] in a folder of its own, and add it to the [`Drivers`] of the program.
pub trait Driver: Send + Sync {
    /// Its name, as in [`LaunchSpec::driver`] and [`crate::MachineIdentity::driver`].
    fn name(&self) -> &'static str;

    /// What its machines can do that not every driver's can.
    fn features(&self) -> DriverFeatures;

    /// Whether this host can run machines of this driver; the error says why not and what to do.
    fn check_host(&self) -> Result<(), MachineError>;

    /// Refuses what [`Driver::launch`] would refuse, before anything is started or written.
    fn check(&self, spec: &LaunchSpec) -> Result<(), MachineError>;

    /// Starts a process and the machine in it. A failure leaves no process.
    fn launch(&self, launch: &Launch<'_>) -> Result<Box<dyn Vm>, MachineError>;

    /// The process that [`Driver::attach`] would attach to. Changes nothing in it.
    fn find(&self, attach: &Attach<'_>) -> Result<ProcessIdentity, MachineError>;

    /// Connects to a process that runs already; it is independent. Whether the guest runs is not changed.
    fn attach(&self, attach: &Attach<'_>) -> Result<Box<dyn Vm>, MachineError>;

    /// Whether that process still runs, whether or not it answers.
    fn is_alive(&self, process: &ProcessIdentity) -> bool;

    /// Ends that process if it still runs, without asking it.
    fn kill(&self, process: &ProcessIdentity) -> Result<(), MachineError>;
}

/// What the machines of a driver can do that not every driver's can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverFeatures {
    /// They can have network interfaces.
    pub networks: bool,
    /// [`Vm::renew_identity`] has an effect.
    pub renews_identity: bool,
    /// A machine that awaits a state needs its kernel and initial RAM file system all the same.
    pub restores_from_boot_files: bool,
}

/// A machine to be started.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The machine's name.
    pub name: &'a str,
    /// What it is started with.
    pub spec: &'a LaunchSpec,
    /// Where its sockets, overlays and logs are; made if it is not there.
    pub runtime_dir: &'a Path,
    /// How the guest begins.
    pub start: Start,
    /// How long its process lives.
    pub lifespan: Lifespan,
}

/// How the guest of a new process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It boots.
    Boots,
    /// It is paused and waits for the state of a checkpoint.
    AwaitsState,
}

/// How long a machine's process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifespan {
    /// It ends when the machine is dropped or this program ends.
    Bound,
    /// It goes on when the machine is dropped or this program ends.
    Independent,
    /// Bound until [`Vm::make_independent`] is called. A driver that cannot change this later takes `Independent`.
    BoundAtFirst,
}

/// A process to be attached to.
#[derive(Clone, Copy, Debug)]
pub struct Attach<'a> {
    /// The machine's name.
    pub name: &'a str,
    /// The socket of its monitor; `None` for the place in `runtime_dir` at which [`Driver::launch`] puts it.
    pub socket: Option<&'a Path>,
    /// Where its sockets, overlays and logs are.
    pub runtime_dir: &'a Path,
    /// The network interfaces that it was started with.
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

    /// Adds one that is less preferred than those before.
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

    /// The first driver whose machines this host can run: what the name `auto` stands for.
    #[must_use]
    pub fn preferred(&self) -> Option<&Arc<dyn Driver>> {
        self.0.iter().find(|driver| driver.check_host().is_ok())
    }

    /// The names of all, the preferred one first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|driver| driver.name())
    }
}

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
