//! The steady workload: tick, rewrite, check, say so.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::arguments::Steady;
use crate::buffer::Buffer;
use crate::clocks::Clocks;
use crate::complaints::Complaints;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::lanes;

/// Ticks from one write to the files to the next: making them durable is the dearest part of a tick.
const FILE_TICKS: u64 = 5;

/// Runs until `--ticks`, or for ever.
pub(crate) fn run(options: &Steady) -> io::Result<()> {
    let mut complaints = Complaints::default();
    let mut identity = Identity::now();
    let mut buffer = Buffer::new(options.memory_mib);
    let mut journal = options.dir.as_deref().map(Journal::create).transpose()?;
    let interval = Duration::from_millis(options.interval_ms);
    let mut due = Instant::now();
    let mut clocks = Clocks::now();
    for tick in 1..=options.ticks.unwrap_or(u64::MAX) {
        identity.check(&mut complaints);
        buffer.write(tick);
        buffer.check(&mut complaints);
        if options.tell_time {
            lanes::check(tick, &mut complaints);
        }
        if tick % FILE_TICKS == 0
            && let Some(journal) = &mut journal
        {
            let done = journal.write(tick, buffer.sum()).and_then(|()| journal.check(tick, &mut complaints));
            if let Err(error) = done {
                complaints.add("file", "readable and writable", error);
            }
        }
        if tick % options.report_every == 0 {
            let file_sum = journal.as_ref().map_or(0, Journal::sum);
            let state = match complaints.count() {
                0 => "ok".to_owned(),
                count => format!("{count} corrupt"),
            };
            println!("tick {tick:05} mem {:08x} file {:08x} {state}", low(buffer.sum()), low(file_sum));
        }
        // A tick that came late shifts those after it: no burst follows a pause.
        due = (due + interval).max(Instant::now());
        let pause = due.saturating_duration_since(Instant::now());
        thread::sleep(pause);
        if options.tell_time {
            clocks.check(pause, &mut complaints);
            if tick % options.report_every == 0 {
                clocks.tell();
            }
        }
    }
    Ok(())
}

/// The low half, which is enough for a line that people read.
fn low(sum: u64) -> u64 {
    sum & 0xffff_ffff
}
