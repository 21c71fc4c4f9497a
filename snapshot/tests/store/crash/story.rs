//! Runs a history of the store, in a process of its own. It reports what it is about to do and what is done with marks:
//! writes to `/dev/null`, which the tracer records among the other calls.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_guest::{Machine, MemoryLayout, PAGE_SIZE};
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointKind, CheckpointRequest, CompactOptions, Error, MachineId,
    PendingCheckpoint, Recorder, RetentionPolicy, RollbackRequest, Store, StoreOptions,
};

use super::random::Random;
use crate::toy::{Frame, Image, Toy, page_of};

pub(super) const DIR: &str = "RETROVISOR_TEST_STORY_DIR";
pub(super) const SEED: &str = "RETROVISOR_TEST_STORY_SEED";
pub(super) const STEPS: &str = "RETROVISOR_TEST_STORY_STEPS";
/// The child's name among the tests.
pub(super) const TEST: &str = "crash::story::child";
pub(super) const PAGES: u64 = 40;
/// Small enough that a history has several packs.
pub(super) const OPTIONS: StoreOptions = StoreOptions { pack_bytes_max: 40_000 };

static SEEN: Schema = Schema { table: "fact_seen", columns: &[Column::new("count", Kind::Integer)] };

/// The child's marks.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// There is a machine.
    Machine,
    /// It is about to take a checkpoint of this image, under this number.
    Try(u64, Arc<Image>),
    /// The checkpoint of this number is durable.
    Done(u64, CheckpointId),
    /// The checkpoint of this number failed, with this message.
    Failed(u64, String),
    /// Something else failed.
    Refused(String),
    /// These checkpoints may be removed from now on.
    Prune(Vec<CheckpointId>),
    /// Calls must not fail any more.
    Space,
}

impl Mark {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim_end().strip_prefix("MARK ")?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (first, more) = rest.split_once(' ').unwrap_or((rest, ""));
        let number = |text: &str| text.parse::<i64>().unwrap();
        let try_number = || first.parse().unwrap();
        Some(match word {
            "MACHINE" => Self::Machine,
            "TRY" => Self::Try(try_number(), Arc::new(read_image(more))),
            "DONE" => Self::Done(try_number(), CheckpointId(number(more))),
            "FAILED" => Self::Failed(try_number(), more.to_owned()),
            "REFUSED" => Self::Refused(rest.to_owned()),
            "PRUNE" => Self::Prune(rest.split_whitespace().map(|id| CheckpointId(number(id))).collect()),
            "SPACE" => Self::Space,
            other => panic!("a mark {other}"),
        })
    }
}

pub(super) fn layout() -> MemoryLayout {
    MemoryLayout::flat(PAGES * PAGE_SIZE as u64).unwrap()
}

pub(super) fn toy() -> Toy {
    Toy::new(&layout())
}

pub(super) fn open(dir: &Path) -> Result<Arc<Store>, Error> {
    Store::open_with(dir, Access::Create, &OPTIONS).map(Arc::new)
}

/// The guest does something.
pub(super) fn scribble(toy: &mut Toy, random: &mut Random) {
    for _ in 0..random.below(14) {
        let index = random.index(usize::try_from(PAGES).unwrap());
        match random.below(12) {
            0 => toy.set(index, Frame::Zero),
            1 => toy.set(index, Frame::Removed),
            // Few enough that contents repeat.
            _ => toy.scribble(index, random.below(500)),
        }
    }
    toy.image.registers.rip = random.below(1 << 40);
    let (seed, length) = (random.below(200), random.index(2 * PAGE_SIZE));
    toy.image.device = device(seed, length);
}

/// State of a device: bytes that follow from a seed, which they begin with.
fn device(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = [page_of(seed), page_of(seed + 1), page_of(seed + 2)].concat();
    bytes.truncate(8 + length);
    bytes
}

fn seed_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().unwrap())
}

/// An image as short text; [`read_image`] is the reverse.
fn image_text(image: &Image) -> String {
    let frames: Vec<_> = image
        .frames
        .iter()
        .map(|frame| match frame {
            Frame::Zero => "z".to_owned(),
            Frame::Removed => "r".to_owned(),
            Frame::Data(page) => {
                // The ninth byte is always 1, so that no page is zero.
                assert_eq!(**page, page_of(seed_of(&page[..])));
                seed_of(&page[..]).to_string()
            }
        })
        .collect();
    let device = if image.device.is_empty() {
        "none 0".to_owned()
    } else {
        format!("{} {}", seed_of(&image.device), image.device.len() - 8)
    };
    format!("{} {} {device}", frames.join(","), image.registers.rip)
}

fn read_image(text: &str) -> Image {
    let words: Vec<_> = text.split(' ').collect();
    let frame = |word: &str| match word {
        "z" => Frame::Zero,
        "r" => Frame::Removed,
        seed => Frame::Data(Box::new(page_of(seed.parse().unwrap()))),
    };
    let mut image = toy().image;
    image.frames = words[0].split(',').map(frame).collect();
    image.registers.rip = words[1].parse().unwrap();
    if words[2] != "none" {
        image.device = device(words[2].parse().unwrap(), words[3].parse().unwrap());
    }
    image
}

struct Story {
    dir: PathBuf,
    marks: File,
    random: Random,
    toy: Toy,
    tries: u64,
}

impl Story {
    fn mark(&self, text: &str) {
        (&self.marks).write_all(format!("MARK {text}\n").as_bytes()).unwrap();
    }

    /// Marks what is to be tried, and gives it a number.
    fn announce(&mut self) -> u64 {
        self.tries += 1;
        self.mark(&format!("TRY {} {}", self.tries, image_text(&self.toy.image)));
        self.tries
    }

    /// Marks the outcome of a checkpoint.
    fn note<T>(
        &self,
        number: u64,
        done: &Result<T, Error>,
        checkpoint: impl FnOnce(&T) -> CheckpointId,
    ) -> bool {
        match done {
            Ok(report) => self.mark(&format!("DONE {number} {}", checkpoint(report).0)),
            Err(error) => {
                assert!(!self.toy.paused, "the guest stands still");
                self.mark(&format!("FAILED {number} {error}"));
            }
        }
        done.is_ok()
    }

    fn step(&mut self, store: &Arc<Store>, recorder: &mut Recorder, machine: MachineId) {
        scribble(&mut self.toy, &mut self.random);
        let all = store.catalogue().checkpoints(machine).unwrap();
        let what = if all.is_empty() { 0 } else { self.random.below(24) };
        match what {
            0..9 => {
                let number = self.announce();
                let kind = if what < 4 { CheckpointKind::Manual } else { CheckpointKind::Automatic };
                let request = CheckpointRequest { label: None, kind };
                let done = recorder.checkpoint(&mut self.toy, &request);
                self.note(number, &done, |report| report.record.id);
            }
            9..12 => self.burst(recorder),
            12..14 => self.prune(store, machine),
            14..16 => {
                let about = all[self.random.index(all.len())].id;
                self.facts(store, about);
            }
            _ => {
                let target = all[self.random.index(all.len())].id;
                let number = self.announce();
                self.move_to(recorder, what, target, number);
            }
        }
    }

    fn move_to(&mut self, recorder: &mut Recorder, what: u64, target: CheckpointId, number: u64) {
        let request = RollbackRequest::default();
        let done = match what {
            16..20 => recorder.rollback(&mut self.toy, target, &request),
            20..22 => match recorder.undo(&mut self.toy, &request) {
                Err(Error::Nothing { .. }) => recorder.rollback(&mut self.toy, target, &request),
                done => done,
            },
            _ => match recorder.redo(&mut self.toy, &request) {
                Err(Error::Nothing { .. }) => recorder.rollback(&mut self.toy, target, &request),
                done => done,
            },
        };
        self.note(number, &done, |report| report.current.as_ref().unwrap().id);
    }

    /// Captures several without waiting: they may share a commit.
    fn burst(&mut self, recorder: &mut Recorder) {
        let mut waiting = Vec::new();
        for _ in 0..2 + self.random.below(3) {
            scribble(&mut self.toy, &mut self.random);
            let number = self.announce();
            let pending = recorder.capture(&mut self.toy, &CheckpointRequest::default());
            waiting.push((number, pending));
        }
        for (number, pending) in waiting {
            let done = pending.and_then(PendingCheckpoint::wait);
            self.note(number, &done, |report| report.record.id);
        }
        recorder.drain(&mut self.toy);
    }

    /// Removes old checkpoints and rewrites packs.
    fn prune(&mut self, store: &Arc<Store>, machine: MachineId) {
        let policy = RetentionPolicy { keep_last: 3 + self.random.below(5), ..RetentionPolicy::nothing() };
        let go_on = &mut |_| ControlFlow::Continue(());
        let options = CompactOptions { garbage_percent_min: 5, vacuum_percent_min: 20 };
        let done = store.plan_prune(&policy, Some(machine)).and_then(|plan| {
            let removed = plan.machines.iter().flat_map(|machine| &machine.removed);
            let ids: Vec<_> = removed.map(|removed| removed.id.0.to_string()).collect();
            self.mark(&format!("PRUNE {}", ids.join(" ")));
            store.prune(&plan, &options, go_on)
        });
        if let Err(error) = done {
            self.mark(&format!("REFUSED {error}"));
        }
    }

    fn facts(&self, store: &Arc<Store>, checkpoint: CheckpointId) {
        let table = Table { schema: &SEEN, rows: vec![vec![Value::Integer(1)]] };
        if let Err(error) = store.catalogue().record_facts(checkpoint, &[table]) {
            self.mark(&format!("REFUSED {error}"));
        }
    }

    /// Opens the store; creates the machine if there is none, and restores it if there was one.
    fn open(&mut self) -> Result<(Arc<Store>, Recorder, MachineId), Error> {
        let store = open(&self.dir)?;
        let machine = match store.catalogue().machines()?.first() {
            Some(known) => known.id,
            None => store.catalogue().add_machine(&self.toy.identity)?.id,
        };
        self.mark("MACHINE");
        let mut recorder = Recorder::new(Arc::clone(&store), machine)?;
        if let Some(position) = recorder.position() {
            recorder.restore(&mut self.toy, position.checkpoint, &RollbackRequest::default())?;
            self.toy.resume().unwrap();
        }
        Ok((store, recorder, machine))
    }

    fn run(&mut self, steps: u64) {
        let mut left = steps;
        while left > 0 {
            let (store, mut recorder, machine) = match self.open() {
                Ok(open) => open,
                Err(error) => {
                    // Where calls are made to fail, opening can fail too: tried again, with space.
                    self.mark(&format!("REFUSED {error}"));
                    self.mark("SPACE");
                    self.open().unwrap()
                }
            };
            let session = left.min(4 + self.random.below(12));
            for _ in 0..session {
                self.step(&store, &mut recorder, machine);
            }
            left -= session;
            if left == 0 {
                // With space again, the next checkpoint has all writes of the guest.
                self.mark("SPACE");
                let number = self.announce();
                let done = recorder.checkpoint(&mut self.toy, &CheckpointRequest::default());
                assert!(self.note(number, &done, |report| report.record.id), "there is space, and it fails");
            }
        }
    }
}

/// Not a test by itself: what the tests of this folder start and trace.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    // The tracer answers when it is there.
    println!("\nREADY");
    std::io::stdin().read_exact(&mut [0]).unwrap();
    let marks = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let mut story = Story { dir, marks, random: Random::new(number(SEED)), toy: toy(), tries: 0 };
    story.run(number(STEPS));
}
