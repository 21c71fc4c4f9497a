//! The processes of machines: which driver starts them, and how they are found.

use std::sync::Arc;

use retrovisor_guest::{
    Attach, Driver, Drivers, Launch, Lifespan, MachineError, Network, ProcessIdentity, Start, Vm, check_name,
};

use crate::error::ManagerError;
use crate::manager::Manager;
use crate::process_guard::{ProcessGuard, Undo};
use crate::spec::MachineSpec;

impl Manager {
    /// The drivers that machines are started and attached with.
    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// The driver of that name; the empty name and `auto` stand for the preferred one that this host can run.
    pub fn choose_driver(&self, name: &str) -> Result<&Arc<dyn Driver>, ManagerError> {
        if matches!(name, "" | "auto") {
            return self.drivers.preferred().ok_or_else(|| ManagerError::Refused {
                what: "no driver can run a machine on this host".to_owned(),
                help: "Name one with --driver to learn what it lacks.".to_owned(),
            });
        }
        let driver = self.driver(name)?;
        driver.check_host()?;
        Ok(driver)
    }

    pub(crate) fn driver(&self, name: &str) -> Result<&Arc<dyn Driver>, ManagerError> {
        self.drivers.get(name).ok_or_else(|| {
            let names = self.drivers.names().collect::<Vec<_>>().join(", ");
            ManagerError::Invalid(format!(
                "there is no driver `{}`: use {names} or auto",
                name.escape_debug()
            ))
        })
    }

    /// Refuses a spec that cannot be launched, before anything is started or written.
    fn check_spec(&self, spec: &MachineSpec) -> Result<(), ManagerError> {
        for interface in spec.interfaces() {
            if let Network::Hub(hub) = &interface.network {
                check_name("hub", hub)?;
            }
        }
        Ok(self.driver(spec.driver())?.check(spec.launch()?)?)
    }

    /// Starts the process of a machine. It ends with the guard.
    pub(crate) fn launch(
        &self,
        name: &str,
        spec: &MachineSpec,
        start: Start<'_>,
        lifespan: Lifespan,
    ) -> Result<ProcessGuard, ManagerError> {
        self.check_spec(spec)?;
        let runtime_dir = self.runtime_dir(name);
        let launch = Launch { name, spec: spec.launch()?, runtime_dir: &runtime_dir, start, lifespan };
        let vm = self.driver(spec.driver())?.launch(&launch)?;
        Ok(ProcessGuard::new(vm, Undo::Quit, &self.call_wait))
    }

    /// The process of a machine that would be attached to.
    pub(crate) fn find(&self, name: &str, spec: &MachineSpec) -> Result<ProcessIdentity, ManagerError> {
        self.with_attach(name, spec, |driver, attach| driver.find(attach))
    }

    /// Connects to the process of a machine.
    pub(crate) fn connect(&self, name: &str, spec: &MachineSpec) -> Result<Box<dyn Vm>, ManagerError> {
        self.with_attach(name, spec, |driver, attach| driver.attach(attach))
    }

    fn with_attach<T>(
        &self,
        name: &str,
        spec: &MachineSpec,
        work: impl FnOnce(&dyn Driver, &Attach<'_>) -> Result<T, MachineError>,
    ) -> Result<T, ManagerError> {
        let runtime_dir = self.runtime_dir(name);
        let attach = Attach {
            name,
            socket: spec.qmp.as_deref(),
            runtime_dir: &runtime_dir,
            interfaces: spec.interfaces(),
        };
        Ok(work(&**self.driver(spec.driver())?, &attach)?)
    }
}
