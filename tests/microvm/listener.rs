use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use retrovisor_machine::kvm::KvmMachine;
use retrovisor_snapshot::{CheckpointId, Recorder, RollbackRequest};

use crate::autopsy;
use crate::guest::{Heard, PATIENCE};

/// What the guest said, cut where it was taken back: there a line may end in its middle, and another go on in its own.
#[derive(Default)]
pub(crate) struct Listener {
    /// Between the two, it is not known which of the guest's lives a byte is of.
    cuts: Vec<(usize, usize)>,
}

impl Listener {
    /// The guest is heard from here on; what it says first may be the rest of a line.
    pub(crate) fn cut(&mut self, machine: &impl Heard) {
        let now = machine.said().len();
        self.cuts.push((now, now));
    }

    /// Takes the guest back. It speaks until it is stopped, and may have spoken again before this is over.
    pub(crate) fn back(&mut self, recorder: &mut Recorder, machine: &mut impl Heard, target: CheckpointId) {
        self.back_by(recorder, machine, target, &RollbackRequest::default());
    }

    /// The same in another way than the usual.
    pub(crate) fn back_by(
        &mut self,
        recorder: &mut Recorder,
        machine: &mut impl Heard,
        target: CheckpointId,
        request: &RollbackRequest,
    ) {
        let before = machine.said().len();
        recorder.rollback(machine, target, request).unwrap();
        self.cuts.push((before, machine.said().len()));
    }

    /// Waits until the running guest says another tick, and tells which.
    pub(crate) fn wait_tick(&self, machine: &mut impl Heard) -> u64 {
        let before = self.ticks(machine).len();
        let began = Instant::now();
        loop {
            let ticks = self.ticks(machine);
            if ticks.len() > before
                && let Some((tick, _)) = ticks.last()
            {
                return *tick;
            }
            let console = String::from_utf8_lossy(&machine.said()).into_owned();
            assert!(!machine.run_state().has_ended(), "{:?}\n{console}", machine.why_gone());
            let patient = began.elapsed() < PATIENCE;
            assert!(patient, "the guest says nothing:\n{console}\n{}", autopsy::of(machine));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The guest noticed nothing: no word of complaint, and the line of a tick is the same each time that it was said,
    /// whichever of the guest's workloads said it.
    pub(crate) fn assert_unnoticed(&self, machine: &impl Heard) {
        let console = String::from_utf8_lossy(&machine.said()).into_owned();
        for complaint in ["corrupt", "CORRUPT", "BUG:", "WARNING:", "lockup", "stall", "Oops", "segfault"] {
            assert!(!console.contains(complaint), "{complaint}:\n{console}");
        }
        let mut said = BTreeMap::new();
        for Line { tick, text: line, .. } in self.all_lines(machine) {
            let first: &String = said.entry(tick).or_insert_with(|| line.clone());
            assert_eq!(*first, line, "tick {tick} was another one the second time:\n{console}");
        }
    }

    /// Waits until the running guest prints its clocks again: wall and monotonic, in milliseconds.
    pub(crate) fn wait_clocks(&self, machine: &mut KvmMachine) -> (u64, u64) {
        let clocks = |machine: &KvmMachine| {
            let console = machine.console();
            let from = self.cuts.last().map_or(0, |cut| cut.1).min(console.len());
            let text = String::from_utf8_lossy(&console[from..]).into_owned();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]).to_owned();
            whole.lines().filter_map(clock_line).collect::<Vec<_>>()
        };
        let before = clocks(machine).len();
        let began = Instant::now();
        loop {
            let printed = clocks(machine);
            if let Some(last) = printed.get(before..).and_then(<[_]>::last) {
                return *last;
            }
            assert!(began.elapsed() < PATIENCE, "the guest tells no time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The ticks of the guest's own workload that were said, with their whole lines.
    pub(crate) fn ticks(&self, machine: &impl Heard) -> Vec<(u64, String)> {
        let lines = self.all_lines(machine).into_iter().filter(|line| line.speaker.is_empty());
        lines.map(|line| (line.tick, line.text)).collect()
    }

    /// How many ticks each speaker said since the last cut.
    pub(crate) fn ticks_since_cut(&self, machine: &impl Heard) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in self.all_lines(machine).into_iter().filter(|line| line.part == self.cuts.len()) {
            *counts.entry(line.speaker).or_default() += 1;
        }
        counts
    }

    fn all_lines(&self, machine: &impl Heard) -> Vec<Line> {
        let console = machine.said();
        let starts = std::iter::once(0).chain(self.cuts.iter().map(|cut| cut.1));
        let ends = self.cuts.iter().map(|cut| cut.0).chain([console.len()]);
        let mut ticks = Vec::new();
        for (part, (start, end)) in starts.zip(ends).enumerate() {
            // One that was taken back twice at once said nothing in between.
            let text = String::from_utf8_lossy(console.get(start..end).unwrap_or_default()).into_owned();
            // The last piece is no line yet, and after a cut the first is none of its own.
            let lines = text.split('\n').skip(usize::from(part > 0));
            let mut lines: Vec<_> = lines.map(str::trim_end).collect();
            lines.pop();
            ticks.extend(lines.into_iter().filter_map(|line| Line::read(part, line)));
        }
        ticks
    }
}

/// A line of a workload.
struct Line {
    /// The cut after which it was said.
    part: usize,
    /// Whose: those that a test started say their name first.
    speaker: String,
    tick: u64,
    text: String,
}

impl Line {
    fn read(part: usize, line: &str) -> Option<Self> {
        let (speaker, line) = match line.split_once(": ") {
            Some((speaker, line)) => (speaker, line),
            None => ("", line),
        };
        let tick = line.strip_prefix("tick ").filter(|line| line.ends_with(" ok"))?;
        let tick = tick.split(' ').next()?.parse().ok()?;
        Some(Self { part, speaker: speaker.into(), tick, text: line.into() })
    }
}

fn clock_line(line: &str) -> Option<(u64, u64)> {
    let mut words = line.trim_end().strip_prefix("clock wall ")?.split(" monotonic ");
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
