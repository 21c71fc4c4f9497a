//! The same pause and the same way back for a machine in a worker process, as `retrovisor run --driver kvm` makes it.

use std::ffi::OsString;
use std::sync::Arc;

use retrovisor_guest::{Machine as _, MachineError};
use retrovisor_machine::kvm::bare::{self, Writing};
use retrovisor_machine::kvm::{Limits, MemorySource, RemoteConfig, RemoteMachine};
use retrovisor_snapshot::{
    Access, CheckpointRequest, CurrentPolicy, Recorder, RecorderSettings, RollbackRequest, Store,
};
use retrovisor_tests::Measured;

use super::lab::{Lab, Order, config};
use super::pause::rows;

/// The word that makes this program a worker.
pub(crate) const WORD: &str = "bench-worker";
const PAGES: [u64; 3] = [0, 100, 1_000];
const TURNS: u64 = 60;

pub(crate) fn measure(measured: &mut Measured) {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = launch(dir.path()).unwrap();
    let store = Arc::new(Store::open(&dir.path().join("store"), Access::Create).unwrap());
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let settings = RecorderSettings { precopy_pages_min: u64::MAX, ..RecorderSettings::default() };
    let mut recorder = Recorder::with_settings(store, id, settings).unwrap();
    machine.resume().unwrap();
    recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
    for pages in PAGES {
        let case = format!("{pages}/sequential");
        let writing = Writing { rounds: 0, ..Lab::writing(pages, Order::Sequential) };
        machine.pause().unwrap();
        bare::assign(&mut machine, &writing).unwrap();
        machine.resume().unwrap();
        recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
        let mut reports = Vec::new();
        for _ in 0..TURNS {
            wait_rounds(&machine);
            reports.push(recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap());
        }
        rows(measured, "kvm.worker", &case, &reports);
        let target = reports[0].record.id;
        let request = RollbackRequest { current: CurrentPolicy::Staged, ..RollbackRequest::default() };
        for _ in 0..TURNS {
            wait_rounds(&machine);
            let report = recorder.rollback(&mut machine, target, &request).unwrap();
            recorder.drain(&mut machine);
            measured.add(&format!("kvm.worker.rollback_us/{case}"), "us", report.timing.rollback_us as f64);
        }
    }
    machine.quit();
}

fn launch(dir: &std::path::Path) -> Result<RemoteMachine, MachineError> {
    RemoteMachine::launch(&RemoteConfig {
        machine: config(MemorySource::Fresh),
        program: std::env::current_exe().unwrap(),
        arguments: vec![OsString::from(WORD)],
        runtime_dir: dir.join("worker"),
        awaits_state: false,
        detached: false,
        limits: Limits::of("bench"),
    })
}

/// The round that is going on, and a whole one.
fn wait_rounds(machine: &RemoteMachine) {
    let rounds = || bare::rounds(machine, 0).unwrap();
    let until = rounds() + 2;
    while rounds() < until {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}
