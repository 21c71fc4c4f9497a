//! How often the analyst is wrong, over many guests: false alarms, misses, delay.

mod synthetic;

use retrovisor_analytics::Judgement;
use retrovisor_snapshot::Verdict;
use synthetic::{Fault, Run};

fn learnt(seed: u32) -> Run {
    let mut run = Run::new(seed.into());
    while run.analyst.is_learning() {
        run.step();
    }
    run
}

fn describe(judgement: &Judgement) -> String {
    let reasons: Vec<_> = judgement.reasons.iter().map(|r| r.text.as_str()).collect();
    format!("{:?} p {:?}: {}", judgement.verdict, judgement.p_value, reasons.join(" | "))
}

#[test]
fn clean_guests_are_hardly_ever_called_bad() {
    let (seeds, clean) = (200_u32, 40);
    let (mut bad_seeds, mut suspects) = (0, 0);
    for seed in 0..seeds {
        let mut run = learnt(seed);
        let mut bad = false;
        for _ in 0..clean {
            let judgement = run.step();
            suspects += u32::from(judgement.verdict == Verdict::Suspect);
            if judgement.verdict == Verdict::Bad {
                bad = true;
                eprintln!("seed {seed}: {}", describe(judgement));
            }
        }
        bad_seeds += u32::from(bad);
    }
    eprintln!("bad in {bad_seeds} of {seeds} runs of {clean} clean checkpoints, {suspects} suspects in all");
    assert!(bad_seeds * 100 <= seeds, "{bad_seeds} of {seeds} clean runs had a bad checkpoint");
    assert!(suspects * 100 <= seeds * clean, "{suspects} suspects");
}

#[test]
fn a_runaway_is_bad_within_four_checkpoints() {
    let mut delays = Vec::new();
    for seed in 0..100 {
        let mut run = learnt(seed);
        for _ in 0..10 {
            run.step();
        }
        run.guest.inject(Fault::RUNAWAY, "runaway");
        let delay = (1..=10).find(|_| run.step().verdict == Verdict::Bad);
        let last = run.judgements.last().expect("judged");
        if delay.is_none_or(|delay| delay > 4) {
            eprintln!("seed {seed}: {delay:?} {}", describe(last));
        }
        assert!(
            last.reasons.first().is_some_and(|reason| reason.subject == "task runaway"),
            "seed {seed}: {}",
            describe(last)
        );
        delays.push(delay.unwrap_or(99));
    }
    delays.sort_unstable();
    eprintln!("delay: median {}, largest {}", delays[50], delays[99]);
    assert!(delays[99] <= 4);
}
