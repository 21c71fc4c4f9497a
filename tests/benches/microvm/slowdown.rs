//! What checkpoints cost the guest's work.

use std::time::{Duration, Instant};

use retrovisor_machine::kvm::bare::Writing;
use retrovisor_snapshot::{CheckpointRequest, RecorderSettings};
use retrovisor_tests::Measured;

use super::lab::{Lab, Order, us};

const PAGES: u64 = 1_000;
const INTERVAL: Duration = Duration::from_millis(50);
/// Rounds that are timed together.
const ROUNDS: u64 = 20;
const TURNS: usize = 8;

pub(crate) fn measure(lab: &mut Lab, measured: &mut Measured) {
    lab.record_with(RecorderSettings::default());
    let writing = at_pace(lab);
    for _ in 0..TURNS {
        // Without checkpoints nobody clears the log, so that after one round its pages are no news to it.
        lab.work(&writing, 1);
        measured.add("kvm.round_ms/alone", "ms", us(lab.work(&writing, ROUNDS)) / 1e3 / ROUNDS as f64);
        let until = lab.rounds() + ROUNDS;
        let begun = lab.begin(&writing, until);
        let mut next = begun + INTERVAL;
        while lab.rounds() < until {
            if Instant::now() >= next {
                lab.recorder.capture(&mut lab.machine, &CheckpointRequest::default()).unwrap();
                next += INTERVAL;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let took = us(begun.elapsed()) / 1e3 / ROUNDS as f64;
        measured.add("kvm.round_ms/checkpoint-every-50-ms", "ms", took);
        lab.recorder.drain(&mut lab.machine);
    }
    let slow = measured.p50("kvm.round_ms/checkpoint-every-50-ms") / measured.p50("kvm.round_ms/alone");
    measured.add("kvm.slowdown", "%", (slow - 1.0) * 100.0);
}

/// A round that takes about as long as it is from one checkpoint to the next.
fn at_pace(lab: &mut Lab) -> Writing {
    let mut writing = Lab::writing(PAGES, Order::Strided);
    let least = us(lab.work(&writing, 1));
    writing.idle_turns = 100;
    let some = us(lab.work(&writing, 1));
    let turn = ((some - least) / 100.0).max(0.001);
    let turns = ((us(INTERVAL) - least) / turn).max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    {
        writing.idle_turns = turns as u64;
    }
    writing
}
