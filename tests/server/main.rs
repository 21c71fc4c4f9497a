//! Rollbacks of a Debian server under load: `make test-server`.
//!
//! Runs `ROLLBACKS` (60) rollbacks on each of four machines: started by `run` and attached, with 1 and 4 vCPUs. Each
//! rollback compares the whole memory with the checkpoint's hash; afterwards the guest checks its kernel log, the
//! database's pages and sums, Redis and its services. Panics at the first damage, with what the guest printed.

mod guest;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use guest::{Origin, Server};
use serde_json::Value;

/// A rollback reaches at most this many checkpoints back: older ones may have lost their disk snapshots.
const DEPTH_MAX: usize = 40;

fn main() {
    let rollbacks = number("ROLLBACKS", 60);
    for origin in [Origin::Run, Origin::Attached] {
        for vcpus in [1, 4] {
            if selected(origin, vcpus) {
                exercise(origin, vcpus, rollbacks);
            }
        }
    }
}

/// `ONLY=run-4` selects one of the four machines.
fn selected(origin: Origin, vcpus: u32) -> bool {
    std::env::var("ONLY").is_ok_and(|only| only == format!("{origin}-{vcpus}"))
        || std::env::var("ONLY").is_err()
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// What the rollbacks of one machine did.
#[derive(Default)]
struct Tally {
    compared: usize,
    undone: usize,
    redone: usize,
    restored: usize,
    to_after_rollback: usize,
    rollback_us: Vec<u64>,
    pages: Vec<u64>,
}

impl Tally {
    /// Counts a rollback, which must have restored the checkpoint's memory exactly.
    fn add(&mut self, rollback: &Value) {
        assert_eq!(rollback["image_matches"], true, "the restored memory differs: {rollback:#}");
        self.compared += 1;
        self.rollback_us.push(rollback["rollback_us"].as_u64().expect("rollback_us"));
        self.pages.push(rollback["pages_written"].as_u64().expect("pages_written"));
    }
}

fn exercise(origin: Origin, vcpus: u32, rollbacks: usize) {
    let begun = Instant::now();
    let mut server = Server::start(origin, vcpus);
    server.wait_for_load();
    let booted = begun.elapsed();
    let mut random = Sequence(u64::from(vcpus) * 7919 + origin as u64);
    let mut tally = Tally::default();
    // Checkpoints taken after a rollback: the ones that were wrong when a rollback's own writes went unnoticed.
    let mut after: VecDeque<String> = VecDeque::new();
    for round in 1..=rollbacks {
        std::thread::sleep(Duration::from_millis(1000 + random.below(3000)));
        let label = format!("round-{round}");
        let _checkpoint = server.json(&["checkpoint", "web", "--label", &label]);
        if origin == Origin::Run && round % 15 == 0 {
            server.kill_process();
            tally.restored += 1;
        }
        let target = if round % 3 == 0 && !after.is_empty() {
            tally.to_after_rollback += 1;
            after[usize::try_from(random.below(after.len() as u64)).expect("an index")].clone()
        } else {
            let names = server.checkpoints();
            let reach = names.len().min(DEPTH_MAX) as u64;
            names[names.len() - 1 - usize::try_from(random.below(reach)).expect("an index")].clone()
        };
        tally.add(&server.json(&["rollback", "web", "--to", &target, "--verify-image"])["rollback"]);
        after.push_back(label);
        if after.len() > DEPTH_MAX / 4 {
            after.pop_front();
        }
        if round % 5 == 0 {
            std::thread::sleep(Duration::from_secs(1));
            tally.add(&server.json(&["undo", "web", "--verify-image"])["rollback"]);
            tally.undone += 1;
            if round % 10 == 0 {
                tally.add(&server.json(&["redo", "web", "--verify-image"])["rollback"]);
                tally.redone += 1;
            }
        }
        server.must_not_complain();
        eprint!("\r{origin}, {vcpus} vCPUs: {round} of {rollbacks} rollbacks ");
    }
    eprintln!();
    server.check_data();
    server.verify_store();
    let (p50, p99) = (quantile(&mut tally.rollback_us, 50), quantile(&mut tally.rollback_us, 99));
    #[expect(clippy::cast_precision_loss, reason = "durations of a rollback fit in 52 bits")]
    let ms = |us: u64| us as f64 / 1000.0;
    println!(
        "{origin}, {vcpus} vCPUs: ready after {} s; {} rollbacks compared bit for bit ({} to checkpoints after a \
         rollback, {} undone, {} redone, {} in a new process), p50 {:.1} ms, p99 {:.1} ms, {} pages at the median; guest \
         and data sound",
        booted.as_secs(),
        tally.compared,
        tally.to_after_rollback,
        tally.undone,
        tally.redone,
        tally.restored,
        ms(p50),
        ms(p99),
        quantile(&mut tally.pages, 50),
    );
}

fn quantile(samples: &mut [u64], percent: usize) -> u64 {
    samples.sort_unstable();
    samples.get((samples.len() * percent / 100).min(samples.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Numbers that are the same in every run (xorshift64).
struct Sequence(u64);

impl Sequence {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}
