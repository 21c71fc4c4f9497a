//! An evaluator that panics: the checkpoint is kept, the machine and the daemon go on, and it is reported.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use retrovisor_manager::{Evaluate, Evaluated, EventKind, Lifecycle, MakeEvaluator, ManagerError, PausedBy};
use retrovisor_snapshot::{CheckpointId, CheckpointRecord, Store, Verdict};

use crate::setup::Daemon;

/// When the next evaluator panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panics {
    Never,
    /// While it is made.
    InMaking,
    /// In the next checkpoint.
    InCheckpoint,
    /// When the machine goes to another checkpoint.
    InMove,
}

type Plan = Arc<Mutex<Panics>>;

/// Panics as planned, once.
struct Panicking {
    store: Arc<Store>,
    plan: Plan,
}

fn panic_if(plan: &Plan, at: Panics) {
    let mut planned = plan.lock().unwrap();
    if *planned == at {
        *planned = Panics::Never;
        drop(planned);
        panic!("the evaluator panics {at:?}");
    }
}

impl Evaluate for Panicking {
    fn evaluate(&mut self, record: &CheckpointRecord) -> Result<Evaluated, ManagerError> {
        panic_if(&self.plan, Panics::InCheckpoint);
        let record = self.store.catalogue().checkpoint(record.id)?;
        Ok(Evaluated { record, reasons: vec!["it was evaluated".to_owned()], incident: None })
    }

    fn moved_to(&mut self, _target: CheckpointId) {
        panic_if(&self.plan, Panics::InMove);
    }
}

fn daemon(plan: &Plan) -> Daemon {
    let plan = Arc::clone(plan);
    let make: MakeEvaluator = Arc::new(move |store, _| {
        panic_if(&plan, Panics::InMaking);
        Ok(Box::new(Panicking { store: Arc::clone(store), plan: Arc::clone(&plan) }))
    });
    Daemon::with(|manager| manager.with_evaluators(make))
}

/// How many checkpoints of a machine were evaluated, and what was reported to have failed, since this was asked last.
fn reported(
    events: &mut tokio::sync::broadcast::Receiver<retrovisor_manager::Event>,
) -> (usize, Vec<String>) {
    let (mut evaluated, mut errors) = (0, Vec::new());
    while let Ok(event) = events.try_recv() {
        match event.kind {
            EventKind::Checkpoint(..) => evaluated += 1,
            EventKind::Error(what) => errors.push(what),
            _ => {}
        }
    }
    (evaluated, errors)
}

#[test]
fn an_evaluator_that_panics_ends_nothing_and_is_reported() {
    let plan = Plan::new(Mutex::new(Panics::Never));
    let daemon = daemon(&plan);
    daemon.run("db").unwrap();
    for (state, at) in [
        (Lifecycle::Running, Panics::InCheckpoint),
        (Lifecycle::Paused(PausedBy::User), Panics::InCheckpoint),
    ] {
        daemon.run("web").unwrap();
        if state != Lifecycle::Running {
            daemon.pause("web", PausedBy::User).unwrap();
        }
        let mut events = daemon.manager.watch();
        *plan.lock().unwrap() = at;
        let taken = daemon.checkpoint("web").unwrap();
        let (evaluated, errors) = reported(&mut events);
        assert_eq!((evaluated, errors.len()), (0, 1), "{errors:?}");
        assert!(errors[0].contains(&taken.name) && errors[0].contains("the evaluator panics"), "{errors:?}");
        let catalogue = daemon.manager.store().catalogue();
        let verdict = catalogue.verdict(taken.id).unwrap().unwrap();
        assert_eq!(verdict.verdict, Verdict::Unknown);
        assert!(verdict.reasons[0].contains("the evaluator panics"), "{:?}", verdict.reasons);
        assert_eq!(daemon.state("web"), state);
        // The next one has a new evaluator.
        daemon.checkpoint("web").unwrap();
        daemon.checkpoint("db").unwrap();
        assert_eq!(reported(&mut events), (2, Vec::new()));
        daemon.rollback("web", taken.id, true).unwrap();
        daemon.stop("web", false).unwrap();
    }
    daemon.check();
}

#[test]
fn an_evaluator_that_panics_on_the_first_checkpoint_does_not_end_a_start() {
    for at in [Panics::InMaking, Panics::InCheckpoint] {
        let plan = Plan::new(Mutex::new(at));
        let daemon = daemon(&plan);
        let mut events = daemon.manager.watch();
        daemon.run("web").unwrap();
        assert_eq!((daemon.state("web"), daemon.host.pids().len()), (Lifecycle::Running, 1), "{at:?}");
        assert_eq!(reported(&mut events).1.len(), 1, "{at:?}");
        *plan.lock().unwrap() = at;
        let planned = daemon.manager.plan_branch("copy", daemon.newest("web")).unwrap();
        daemon.manager.branch("copy", &planned, false, &mut |_| ControlFlow::Continue(())).unwrap();
        daemon.checkpoint("copy").unwrap();
        assert_eq!(daemon.state("copy"), Lifecycle::Running, "{at:?}");
        assert_eq!(reported(&mut events).1.len(), 1, "{at:?}");
        daemon.check();
    }
}

#[test]
fn an_evaluator_that_panics_when_the_machine_moves_does_not_end_a_rollback() {
    let plan = Plan::new(Mutex::new(Panics::Never));
    let daemon = daemon(&plan);
    daemon.run("web").unwrap();
    let first = daemon.checkpoint("web").unwrap();
    for verify_image in [false, true] {
        *plan.lock().unwrap() = Panics::InMove;
        daemon.rollback("web", first.id, verify_image).unwrap();
        assert_eq!(*plan.lock().unwrap(), Panics::Never, "it panicked");
        assert_eq!(daemon.state("web"), Lifecycle::Running);
        daemon.checkpoint("web").unwrap();
    }
    daemon.check();
}
