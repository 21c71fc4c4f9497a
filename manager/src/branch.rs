//! A second machine from a checkpoint of a first.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{ClockPolicy, Lifespan, Network, Start};
use retrovisor_snapshot::{
    BranchPlan, BranchProgress, BranchRequest, CheckpointId, CheckpointRecord, CheckpointRequest, MachineId,
    Recorder, Store,
};

use crate::arrival::Arrival;
use crate::lifecycle::CommandKind;
use crate::process_guard::ProcessGuard;
use crate::spec::{MachineSpec, Origin};
use crate::{Manager, ManagerError};

/// A branch that is checked and can be made.
pub struct PlannedBranch {
    /// What the store says of it.
    pub plan: BranchPlan,
    /// What it is plugged into, in words.
    pub networks: Vec<String>,
    /// What of its identity is not new.
    pub warning: Option<String>,
    spec: MachineSpec,
}

/// A branch that is being made. Unless it is kept, dropping it leaves nothing of the new machine, however far it was.
struct Draft<'a> {
    store: &'a Arc<Store>,
    machine: MachineId,
    /// The runtime directory, if it was not there before.
    dir: Option<PathBuf>,
    /// Present until the machine is brought up.
    recorder: Option<Recorder>,
    is_kept: bool,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Some(recorder) = self.recorder.take() {
            recorder.abandon_branch();
        }
        // One that has a checkpoint already is removed with it.
        if self.store.catalogue().machine_by_id(self.machine).is_ok() {
            let removed = self.store.remove_machine(self.machine, &mut |_| ControlFlow::Continue(()));
            if let Err(error) = removed {
                tracing::warn!(%error, "a branch that did not start stays in the store");
            }
        }
        if let Some(dir) = &self.dir {
            remove(dir);
        }
    }
}

/// A branch that was made.
pub struct Branched {
    /// Its first checkpoint.
    pub first: CheckpointRecord,
    /// From the beginning until it ran, or was ready to, in microseconds.
    pub branch_us: u64,
}

impl Manager {
    /// What a branch of a checkpoint would be. Refuses what cannot be.
    pub fn plan_branch(&self, new: &str, origin: CheckpointId) -> Result<PlannedBranch, ManagerError> {
        drop(self.reserve(new, CommandKind::Run, None)?);
        if self.known(new)?.is_some() {
            return Err(ManagerError::Known { machine: new.to_owned() });
        }
        let plan = self.store.plan_branch(origin)?;
        let name = &plan.machine.name;
        let mut spec = MachineSpec::from_runtime(name, &plan.machine.runtime)?;
        let Origin::Launched(launch) = &mut spec.origin else {
            return Err(ManagerError::Refused {
                what: format!("{name} was not started by Retrovisor, which cannot start another one like it"),
                help: "Only machines of `retrovisor run` can be branched.".to_owned(),
            });
        };
        if !plan.disks_missing.is_empty() {
            return Err(ManagerError::Refused {
                what: format!(
                    "what {name} had written on {} at {} is only in its own overlay, not in the store",
                    plan.disks_missing.join(", "),
                    plan.origin.name
                ),
                help: "Branch from a checkpoint that was taken since the store keeps disks.".to_owned(),
            });
        }
        for disk in &launch.disks {
            is_there(disk)?;
        }
        let mut networks = Vec::new();
        for interface in &mut launch.interfaces {
            // One that is made of the new name.
            interface.mac = None;
            networks.push(match &interface.network {
                Network::Tap(tap) if self.is_managed(name) => {
                    return Err(ManagerError::Refused {
                        what: format!("{name} has the tap {tap}, and a tap is for one machine"),
                        help: format!("Stop {name} first, or run it on a hub."),
                    });
                }
                Network::Tap(tap) => format!("tap {tap}, with an Ethernet address of its own"),
                Network::Hub(hub) => format!(
                    "hub {hub}, with an Ethernet address of its own; its guest still has the IP address of {name}'s"
                ),
            });
        }
        let features = self.driver(&launch.driver)?.features();
        if features.restores_from_boot_files {
            is_there(&launch.kernel)?;
            launch.initrd.as_deref().map_or(Ok(()), is_there)?;
        }
        let warning = (!features.renews_identity).then(|| {
            format!(
                "Guests of the driver {} do not learn that they are another machine: both draw the same random \
                 numbers at first.",
                launch.driver
            )
        });
        spec.qmp = None;
        spec.detached = true;
        Ok(PlannedBranch { plan, networks, warning, spec })
    }

    /// Starts a machine that goes on from a checkpoint of another one. Blocks until it runs. Ends early, with nothing left
    /// of it, when `progress` says so.
    pub fn branch(
        &self,
        new: &str,
        planned: &PlannedBranch,
        paused: bool,
        progress: &mut dyn FnMut(BranchProgress) -> ControlFlow<()>,
    ) -> Result<Branched, ManagerError> {
        let begun = Instant::now();
        let _reservation = self.reserve(new, CommandKind::Run, None)?;
        let spec = &planned.spec;
        let request = BranchRequest { runtime: spec.to_runtime()?, detail: serde_json::Value::Null };
        let dir = Some(self.runtime_dir(new)).filter(|dir| !dir.exists());
        let recorder = Recorder::begin_branch(&self.store, new, planned.plan.origin.id, &request)?;
        let mut draft =
            Draft { store: &self.store, machine: recorder.machine(), dir, recorder: None, is_kept: false };
        let (vm, first) =
            self.adopt(new, spec, planned.plan.origin.id, draft.recorder.insert(recorder), progress)?;
        let arrival = Arrival::Branched { first: Box::new(first.clone()), paused };
        let recorder = draft.recorder.take();
        self.bring_up(vm, spec, arrival, recorder)?;
        draft.is_kept = true;
        let branch_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(Branched { first, branch_us })
    }

    /// A process that holds what the checkpoint says, and its first checkpoint.
    fn adopt(
        &self,
        new: &str,
        spec: &MachineSpec,
        origin: CheckpointId,
        recorder: &mut Recorder,
        progress: &mut dyn FnMut(BranchProgress) -> ControlFlow<()>,
    ) -> Result<(ProcessGuard, CheckpointRecord), ManagerError> {
        let state = self.store.state(origin)?;
        let mut vm = self.launch(new, spec, Start::AwaitsState(&state), Lifespan::BoundAtFirst)?;
        self.store.catalogue().set_identity(recorder.machine(), vm.identity())?;
        recorder.set_process(vm.process().to_string());
        let report = recorder.adopt(&mut *vm, ClockPolicy::StandStill, progress)?;
        vm.renew_identity()?;
        let taken = recorder.checkpoint(&mut *vm, &CheckpointRequest::default())?;
        tracing::debug!(machine = new, timing = ?report.timing, taken = ?taken.timing, "branch");
        Ok((vm, taken.record))
    }

    /// Removes what a daemon that died left of branches that were not whole. Returns one line each for the user.
    pub(crate) fn remove_incomplete_branches(self: &Arc<Self>) -> Vec<String> {
        let incomplete = match self.store.catalogue().remove_incomplete_branches() {
            Ok(incomplete) => incomplete,
            Err(error) => return vec![format!("cannot look for incomplete branches: {error}")],
        };
        let lines = incomplete.into_iter().map(|record| {
            let name = record.name.clone();
            let ended = self.in_time(&name, move |manager| {
                // Mostly there is nothing: a worker ends with the daemon that started it.
                let left = MachineSpec::from_runtime(&record.name, &record.runtime)
                    .and_then(|spec| manager.connect(&record.name, &spec));
                if let Ok(machine) = left {
                    machine.quit();
                }
                remove(&manager.runtime_dir(&record.name));
            });
            let left = if ended.is_some() { "nothing of it is left" } else { "its process is being ended" };
            format!("{name} was being branched when its daemon died; {left}")
        });
        lines.collect()
    }
}

fn is_there(path: &Path) -> Result<(), ManagerError> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(ManagerError::Refused {
            what: format!("{} cannot be read: {error}", path.display()),
            help: "A branch needs the files that its machine was started with, where they were.".to_owned(),
        }),
    }
}

/// Takes away the runtime directory of a machine that does not exist.
fn remove(dir: &Path) {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "the files of an incomplete branch stay");
        }
        _ => {}
    }
}
