use std::fmt;
use std::time::Duration;

use crate::Random;
use crate::disturbance;
use crate::world::{ATTACHED, RAN, World};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Done,
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Done => "done",
            Self::Refused => "refused",
        })
    }
}

/// Something that is done to the guests, the daemon or the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Checkpoint,
    Rollback,
    Undo,
    Redo,
    PauseAndResume,
    Inspect,
    Read,
    Audit,
    Set,
    Pin,
    Prune,
    Branch,
    Export,
    StopAndRestore,
    DetachAndAttach,
    KillQemu,
    KillDaemon,
    EndDaemon,
    FillDisk,
    StepClock,
}

/// Each operation, how often it is chosen, and whether it is one for the calm part at the end.
const CHOICES: [(Operation, usize, bool); 20] = [
    (Operation::Checkpoint, 12, true),
    (Operation::Rollback, 12, true),
    (Operation::Undo, 8, true),
    (Operation::Redo, 6, true),
    (Operation::PauseAndResume, 4, true),
    (Operation::Inspect, 6, true),
    (Operation::Read, 6, true),
    (Operation::Audit, 2, true),
    (Operation::Set, 2, true),
    (Operation::Pin, 3, true),
    (Operation::Prune, 2, true),
    (Operation::Branch, 2, true),
    (Operation::Export, 2, true),
    (Operation::StopAndRestore, 2, true),
    (Operation::DetachAndAttach, 3, true),
    (Operation::KillQemu, 2, true),
    (Operation::KillDaemon, 3, false),
    (Operation::EndDaemon, 1, false),
    (Operation::FillDisk, 1, true),
    (Operation::StepClock, 2, true),
];

const QUESTIONS: [&str; 6] = ["summary", "tasks", "sockets", "log", "integrity", "memory"];

impl Operation {
    pub(crate) fn choose(random: &mut Random, is_calm: bool) -> Self {
        let fits = |choice: &&(Self, usize, bool)| !is_calm || choice.2;
        let total: usize = CHOICES.iter().filter(fits).map(|choice| choice.1).sum();
        let mut at = random.below(total);
        for (operation, weight, _) in CHOICES.iter().filter(fits) {
            if at < *weight {
                return *operation;
            }
            at -= weight;
        }
        Self::Checkpoint
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Rollback => "rollback",
            Self::Undo => "undo",
            Self::Redo => "redo",
            Self::PauseAndResume => "pause, resume",
            Self::Inspect => "inspect",
            Self::Read => "log, diff, query, report",
            Self::Audit => "audit",
            Self::Set => "set",
            Self::Pin => "pin, unpin",
            Self::Prune => "prune",
            Self::Branch => "branch, stop, remove",
            Self::Export => "export, import, remove",
            Self::StopAndRestore => "stop, rollback",
            Self::DetachAndAttach => "detach, attach",
            Self::KillQemu => "kill -9 QEMU",
            Self::KillDaemon => "kill -9 daemon",
            Self::EndDaemon => "SIGTERM daemon",
            Self::FillDisk => "full disk",
            Self::StepClock => "step of the host's clock",
        }
    }

    pub(crate) fn run(self, world: &mut World, random: &mut Random) -> Outcome {
        let machine = *random.pick(&[RAN, ATTACHED]).expect("two machines");
        match self {
            Self::Checkpoint => world.tried(&["checkpoint", machine]),
            Self::Rollback => match world.recent(machine, random) {
                Some(target) => world.tried(&["rollback", machine, "--to", &target, "--verify-image"]),
                None => Outcome::Refused,
            },
            Self::Undo => world.tried(&["undo", machine, "--verify-image"]),
            Self::Redo => world.tried(&["redo", machine, "--verify-image"]),
            Self::PauseAndResume => {
                let paused = world.tried(&["pause", machine]);
                let _undone = world.tried(&["undo", machine]);
                paused.max(world.tried(&["resume", machine]))
            }
            Self::Inspect => {
                let question = random.pick(&QUESTIONS).expect("a question");
                world.tried(&["inspect", machine, question])
            }
            Self::Read => read(world, machine, random),
            Self::Audit => world.tried(&["audit", machine]),
            Self::Set => {
                let every = random.pick(&["300ms", "500ms", "1s"]).expect("an interval");
                world.tried(&["set", machine, "--every", every])
            }
            Self::Pin => match world.recent(machine, random) {
                Some(target) => {
                    world.tried(&["pin", machine, &target]).max(world.tried(&["unpin", machine, &target]))
                }
                None => Outcome::Refused,
            },
            Self::Prune => world.tried(&["prune", machine, "--keep-last", "40", "--yes"]),
            Self::Branch => {
                let branched = world.tried(&["branch", machine, "branched"]);
                let _stopped = world.tried(&["stop", "branched", "--force"]);
                let _removed = world.tried(&["remove", "branched", "--yes"]);
                branched
            }
            Self::Export => export(world, machine),
            Self::StopAndRestore => {
                let stopped = world.tried(&["stop", machine]);
                world.bring_back(machine, random);
                stopped
            }
            Self::DetachAndAttach => world.detach_and_attach(),
            Self::KillQemu => {
                world.kill_qemu(machine);
                // Sometimes at once, so that it is not seen as gone yet.
                std::thread::sleep(Duration::from_millis(random.below(2000) as u64));
                world.bring_back(machine, random);
                Outcome::Done
            }
            Self::KillDaemon => {
                // Something is under way when it dies.
                let busy = world
                    .recent(machine, random)
                    .map(|target| world.begin(&["rollback", machine, "--to", &target]));
                std::thread::sleep(Duration::from_millis(random.below(150) as u64));
                world.kill_daemon();
                if let Some(mut client) = busy {
                    let _ended = client.wait();
                }
                world.start_daemon();
                Outcome::Done
            }
            Self::EndDaemon => {
                world.end_daemon();
                world.start_daemon();
                Outcome::Done
            }
            Self::FillDisk => disturbance::fill_disk(world),
            Self::StepClock => disturbance::step_clock(world, random),
        }
    }
}

fn read(world: &mut World, machine: &str, random: &mut Random) -> Outcome {
    let Some(target) = world.recent(machine, random) else { return Outcome::Refused };
    world
        .tried(&["log", machine])
        .max(world.tried(&["diff", machine, &target, "latest"]))
        .max(world.tried(&["query", "SELECT count(*) FROM v_checkpoint"]))
        .max(world.tried(&["anomalies", machine]))
        .max(world.tried(&["report", machine, "--html", &world.file("report.html")]))
}

fn export(world: &mut World, machine: &str) -> Outcome {
    let file = world.file("history.archive");
    let exported = world.tried(&["export", machine, &file, "--format", "archive"]);
    let imported = world.tried(&["import", "imported", &file]);
    let _removed = world.tried(&["remove", "imported", "--yes"]);
    let _gone = std::fs::remove_file(&file);
    exported.max(imported)
}
