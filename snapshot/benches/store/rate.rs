//! Checkpoints one after the other, without waiting for each.

use std::time::{Duration, Instant};

use retrovisor_snapshot::{CheckpointRequest, RecorderSettings};

use crate::lab::Lab;
use crate::table::Table;

const LASTS: Duration = Duration::from_secs(4);

pub(crate) fn measure(lab: &mut Lab, table: &mut Table) {
    lab.record_with(RecorderSettings::default());
    let request = CheckpointRequest::default();
    let (mut pauses, mut waiting, mut making_up) = (Vec::new(), Vec::new(), Duration::ZERO);
    let start = Instant::now();
    while start.elapsed() < LASTS {
        let begun = Instant::now();
        lab.touch(100, 3, false);
        // Generating contents is work of neither the guest nor the store.
        making_up += begun.elapsed();
        let pending = lab.recorder.capture(&mut lab.machine, &request).unwrap();
        pauses.push(pending.timing().pause_us as f64);
        waiting.push(lab.recorder.waiting() as f64);
    }
    let captured = pauses.len();
    lab.recorder.drain(&mut lab.machine);
    let took = start.elapsed().as_secs_f64();
    table.one("capture.rate/100", "1/s", captured as f64 / took);
    table.one("capture.rate.making_up_contents/100", "%", making_up.as_secs_f64() / took * 100.0);
    table.add("capture.rate.pause_us/100", "us", pauses);
    table.add("capture.rate.waiting/100", "", waiting);

    let (mut stopped_us, mut durable) = (0, Vec::new());
    let mut pending = Vec::new();
    let start = Instant::now();
    for round in 0..60_u32 {
        lab.touch(1_000, 3, false);
        let taken = lab.recorder.capture(&mut lab.machine, &request).unwrap();
        stopped_us += taken.timing().pause_us;
        pending.push(taken);
        std::thread::sleep((Duration::from_millis(50) * (round + 1)).saturating_sub(start.elapsed()));
    }
    let took = start.elapsed();
    table.one("capture.stopped/1000-at-20-per-s", "%", stopped_us as f64 / took.as_micros() as f64 * 100.0);
    for taken in pending {
        durable.push(taken.wait().unwrap().timing.durable_us as f64 / 1e3);
    }
    table.add("capture.durable_ms/1000-at-20-per-s", "ms", durable);
}
