//! The demo in figures: `summary.json`.

use std::time::Duration;

use retrovisor_proto::v1::{Checkpoint, Verdict};
use serde::Serialize;

use crate::terminal::quantity;

/// Faults must be detected within this many checkpoints.
const DELAY_CHECKPOINTS_MAX: u64 = 4;
/// What the guest's counter gains from one line that it writes to the next.
const COUNTER_STEP: u64 = 10;

/// Results.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    pub(super) checkpoints: u64,
    /// Bad checkpoints while no fault had effects.
    pub(super) false_alarms: u64,
    /// Suspect checkpoints while no fault had effects: evidence that was not confirmed, and leads to no rollback.
    pub(super) unconfirmed: u64,
    pub(super) faults: Vec<FaultSummary>,
    pub(super) pause_ms_p50: f64,
    pub(super) pause_ms_p99: f64,
    pub(super) rollback_ms: f64,
    pub(super) stored_bytes_per_checkpoint: u64,
    pub(super) introspect_ms_p50: f64,
    pub(super) undo_image_matches: bool,
    /// Lines in which the workload reported corruption.
    pub(super) guest_complaints: Vec<String>,
    pub(super) elapsed_s: f64,
    #[serde(skip)]
    pauses_us: Vec<u64>,
    #[serde(skip)]
    stored_bytes: Vec<u64>,
    #[serde(skip)]
    pub(super) rollbacks_us: Vec<u64>,
    #[serde(skip)]
    pub(super) introspect_us: Vec<u64>,
}

/// One fault, from injection to rollback.
#[derive(Debug, Default, Serialize)]
pub(super) struct FaultSummary {
    /// What was injected.
    pub(super) kind: String,
    /// Sequence of the last checkpoint before the injection.
    pub(super) injected_at: u64,
    /// Sequence of the first checkpoint that shows it.
    pub(super) first_bad: u64,
    /// Checkpoints from the injection until the verdict `bad` was given.
    pub(super) delay_checkpoints: u64,
    /// Sequence of the checkpoint that the machine was rolled back to.
    pub(super) rolled_back_to: u64,
    /// The guest's own counter just before and just after the rollback.
    pub(super) guest_counter_before: u64,
    pub(super) guest_counter_after: u64,
    /// Whether the restored memory had the checkpoint's hash.
    pub(super) restored_image_matches: bool,
    /// The first cause of the ranking.
    pub(super) top_cause: String,
    /// The cause that should be first.
    pub(super) expected_cause: String,
}

impl Summary {
    /// Adds a checkpoint.
    pub(super) fn count(&mut self, taken: &Checkpoint, faulty: bool) {
        self.checkpoints += 1;
        self.pauses_us.push(taken.pause_us);
        // The first one holds the whole memory.
        if taken.sequence > 1 {
            self.stored_bytes.push(taken.stored_bytes);
        }
        if !faulty {
            self.false_alarms += u64::from(taken.verdict() == Verdict::Bad);
            self.unconfirmed += u64::from(taken.verdict() == Verdict::Suspect);
        }
    }

    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.pause_ms_p50 = quantile_ms(&mut self.pauses_us, 50);
        self.pause_ms_p99 = quantile_ms(&mut self.pauses_us, 99);
        self.rollback_ms = quantile_ms(&mut self.rollbacks_us, 50);
        self.introspect_ms_p50 = quantile_ms(&mut self.introspect_us, 50);
        let count = self.stored_bytes.len().max(1) as u64;
        self.stored_bytes_per_checkpoint = self.stored_bytes.iter().sum::<u64>() / count;
        self.elapsed_s = (elapsed.as_secs_f64() * 10.0).round() / 10.0;
    }

    /// What the demo should have shown and did not, in words.
    pub(super) fn missed_goals(&self) -> Vec<String> {
        let goals = [
            (self.false_alarms == 0, "no checkpoint without a fault is bad"),
            (self.guest_complaints.is_empty(), "the guest finds no corruption"),
            (self.undo_image_matches, "undo restores the memory bit for bit"),
            (self.faults.len() == 2, "both faults are injected"),
        ];
        let goals = goals.map(|(is_met, goal)| (is_met, goal.to_owned()));
        let of_faults = self.faults.iter().flat_map(FaultSummary::goals);
        goals.into_iter().chain(of_faults).filter(|(is_met, _)| !is_met).map(|(_, goal)| goal).collect()
    }

    pub(super) fn in_words(&self) -> String {
        format!(
            "{} checkpoints, pause {:.1} ms (p99 {:.1}), {} KiB each; rollback {:.1} ms; reading a checkpoint {:.1} ms; \
             {}, {}; guest complaints: {}.",
            self.checkpoints,
            self.pause_ms_p50,
            self.pause_ms_p99,
            self.stored_bytes_per_checkpoint / 1024,
            self.rollback_ms,
            self.introspect_ms_p50,
            quantity::count(self.false_alarms, "false alarm"),
            quantity::count(self.unconfirmed, "unconfirmed suspicion"),
            self.guest_complaints.len(),
        )
    }
}

impl FaultSummary {
    /// A guest that got little CPU time may have written nothing since the checkpoint: its next line is then the same
    /// before and after the rollback.
    fn goals(&self) -> [(bool, String); 4] {
        let kind = &self.kind;
        [
            (
                self.delay_checkpoints <= DELAY_CHECKPOINTS_MAX,
                format!("{kind} is detected within {DELAY_CHECKPOINTS_MAX} checkpoints"),
            ),
            (self.restored_image_matches, format!("the rollback of {kind} restores the memory bit for bit")),
            (
                self.guest_counter_after <= self.guest_counter_before + COUNTER_STEP,
                format!("the guest goes on from where it was before {kind}"),
            ),
            (
                self.top_cause.contains(&self.expected_cause),
                format!("the first cause of {kind} is {}", self.expected_cause),
            ),
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a demo fit in 52 bits")]
fn quantile_ms(values_us: &mut [u64], percent: usize) -> f64 {
    values_us.sort_unstable();
    let at = (values_us.len() * percent / 100).min(values_us.len().saturating_sub(1));
    values_us.get(at).map_or(0.0, |us| *us as f64 / 1000.0)
}
