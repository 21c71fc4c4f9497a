//! Random histories, compared with a simple model of what each machine is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use retrovisor_guest::RunState;
use retrovisor_manager::{Command, Lifecycle, ManagerError, PausedBy};

use crate::setup::{Daemon, wait};

const NAMES: [&str; 2] = ["web", "db"];

#[derive(Clone, Copy, Debug)]
enum Step {
    Run,
    Checkpoint,
    RollbackToFirst,
    Undo,
    Pause,
    Resume,
    Stop,
    Detach,
    Attach,
    /// The guest powers itself off.
    PowersOff,
    /// The process is killed.
    Dies,
    /// The daemon ends and starts.
    Restart,
}

/// What the model knows of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Running,
    Paused,
    Off,
    Detached,
    Gone,
}

impl Model {
    fn of(state: Lifecycle) -> Self {
        match state {
            Lifecycle::Running => Self::Running,
            Lifecycle::Paused(_) => Self::Paused,
            Lifecycle::PoweredOff => Self::Off,
            Lifecycle::Detached => Self::Detached,
            Lifecycle::Gone => Self::Gone,
            other => panic!("nothing leads to {other}"),
        }
    }
}

/// The state after a step, and whether it must succeed; `None` for a machine that was never run.
#[expect(clippy::match_same_arms, reason = "one arm for each rule of the model")]
fn expect(step: Step, model: Option<Model>, desired_paused: bool) -> (Option<Model>, Option<bool>) {
    let stays = |succeeds| (model, Some(succeeds));
    let to = |model| (Some(model), Some(true));
    let Some(known) = model else {
        return match step {
            Step::Run => to(Model::Running),
            Step::PowersOff | Step::Dies | Step::Restart => (None, None),
            _ => stays(false),
        };
    };
    let is_up = matches!(known, Model::Running | Model::Paused);
    let desired = if desired_paused { Model::Paused } else { Model::Running };
    match (step, known) {
        (Step::Run, Model::Gone) => to(Model::Running),
        (Step::Run, _) => stays(false),
        (Step::Checkpoint, _) => stays(is_up),
        (Step::RollbackToFirst, Model::Running | Model::Paused) => stays(true),
        (Step::RollbackToFirst, Model::Off | Model::Gone) => to(desired),
        (Step::RollbackToFirst, Model::Detached) => stays(false),
        // Whether there is something to undo is not modelled.
        (Step::Undo, _) if is_up => (model, None),
        (Step::Undo, _) => stays(false),
        (Step::Pause, _) if is_up => to(Model::Paused),
        (Step::Resume, _) if is_up => to(Model::Running),
        (Step::Pause | Step::Resume, _) => stays(false),
        (Step::Stop, Model::Running | Model::Paused | Model::Off) => to(Model::Gone),
        (Step::Stop, _) => stays(false),
        (Step::Detach, Model::Gone) => stays(false),
        (Step::Detach, _) => to(Model::Detached),
        // A machine that was detached paused is found paused, one that was off is found off.
        (Step::Attach, Model::Detached) => (None, Some(true)),
        (Step::Attach, _) => stays(false),
        (Step::PowersOff, Model::Running) => (Some(Model::Off), None),
        (Step::Dies, Model::Running | Model::Paused | Model::Off | Model::Detached) => {
            (Some(Model::Gone), None)
        }
        (Step::PowersOff | Step::Dies | Step::Restart, _) => (model, None),
    }
}

fn execute(daemon: &mut Daemon, name: &str, step: Step) -> Result<(), ManagerError> {
    let has_process = daemon.manager.status(name).is_ok_and(|status| status.state != Lifecycle::Gone);
    match step {
        Step::Run => daemon.run(name),
        Step::Checkpoint => daemon.checkpoint(name).map(drop),
        Step::RollbackToFirst => {
            let catalogue = daemon.manager.store().catalogue();
            let first = catalogue.checkpoints(catalogue.machine(name)?.id)?[0].id;
            daemon.rollback(name, first, true).map(drop)
        }
        Step::Undo => daemon.ask(name, |reply| Command::Undo { verify_image: true, reply }).map(drop),
        Step::Pause => daemon.pause(name, PausedBy::User),
        Step::Resume => daemon.resume(name),
        Step::Stop => daemon.stop(name, false),
        Step::Detach => wait(daemon.manager.detach(name)).map(drop),
        Step::Attach => daemon.manager.attach_again(name),
        Step::PowersOff => {
            if has_process && daemon.host.script(name).run_state() == RunState::Running {
                daemon.host.script(name).enter(RunState::PoweredOff);
            }
            Ok(())
        }
        Step::Dies => {
            daemon.host.kill_by_name(name);
            Ok(())
        }
        Step::Restart => {
            daemon.restart();
            Ok(())
        }
    }
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let kind = prop_oneof![
        4 => Just(Step::Run),
        4 => Just(Step::Checkpoint),
        4 => Just(Step::RollbackToFirst),
        3 => Just(Step::Undo),
        2 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Stop),
        1 => Just(Step::Detach),
        2 => Just(Step::Attach),
        1 => Just(Step::PowersOff),
        1 => Just(Step::Dies),
        1 => Just(Step::Restart),
    ];
    (0..NAMES.len(), kind)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_follow_the_model(steps in prop::collection::vec(step(), 1..20)) {
        let mut daemon = Daemon::new();
        let mut models: BTreeMap<&str, Model> = BTreeMap::new();
        let mut desired: BTreeMap<&str, bool> = BTreeMap::new();
        for (which, step) in steps {
            let name = NAMES[which];
            let before = models.get(name).copied();
            let is_desired_paused = desired.get(name).copied().unwrap_or(false);
            let (expected, succeeds) = expect(step, before, is_desired_paused);
            let done = execute(&mut daemon, name, step);
            let is_done = done.is_ok();
            if let Some(succeeds) = succeeds {
                prop_assert_eq!(done.is_ok(), succeeds, "{:?} of {:?}: {:?}", step, before, done.err());
            }
            if before.is_some() && daemon.manager.is_managed(name) {
                daemon.observe(name);
            }
            match (before, step) {
                (None, step) if !matches!(step, Step::Run) => continue,
                (_, Step::Attach) if before == Some(Model::Detached) => {
                    models.insert(name, Model::of(daemon.state(name)));
                }
                _ => {
                    let expected = expected.unwrap_or(Model::Gone);
                    if expected == Model::Gone {
                        daemon.wait_for(name, Lifecycle::Gone);
                    }
                    prop_assert_eq!(Model::of(daemon.state(name)), expected, "{:?} of {:?}", step, before);
                    models.insert(name, expected);
                }
            }
            match (step, models[name]) {
                (Step::Pause, Model::Paused) => desired.insert(name, true),
                (Step::Run | Step::Resume | Step::Stop, _) if is_done => desired.insert(name, false),
                _ => None,
            };
        }
        let processes = models.values().filter(|model| **model != Model::Gone).count();
        prop_assert_eq!(daemon.host.pids().len(), processes);
        daemon.check();
    }
}
