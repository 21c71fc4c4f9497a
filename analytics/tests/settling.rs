//! What becomes normal and when: a guest that boots, one that changes for good, one that leaks.

mod synthetic;

use retrovisor_analytics::{Config, Evaluation, Evaluator, Sample};
use retrovisor_snapshot::{CheckpointId, Verdict};
use synthetic::run::Run;
use synthetic::stored::StoredRun;
use synthetic::{Fault, Guest};

const SEEDS: std::ops::Range<u64> = 0..6;

/// A guest that has settled, and ran on for a while.
fn learnt(seed: u64) -> Run {
    let mut run = Run::new(seed);
    while run.evaluator.is_learning() {
        run.step();
    }
    for _ in 0..12 {
        run.step();
    }
    run
}

fn says(evaluation: &Evaluation, text: &str) -> bool {
    evaluation.reasons.iter().any(|reason| reason.text.contains(text))
}

fn describe(evaluation: &Evaluation) -> String {
    let reasons: Vec<_> = evaluation.reasons.iter().map(|reason| reason.text.as_str()).collect();
    format!("{} {}: {}", evaluation.checkpoint, evaluation.verdict, reasons.join(" | "))
}

/// Starts a service that uses much of a processor, and runs until that is accepted; the checkpoints before that.
fn accept_a_service(run: &mut Run) -> usize {
    run.guest.start_service("cache-server", 12_000.0, 0.6);
    (0..400).find(|_| run.step().change_accepted).expect("the service is accepted")
}

#[test]
fn a_boot_is_no_part_of_the_baseline_and_none_of_it_is_bad_or_good() {
    for seed in SEEDS {
        let mut run = Run::new(seed);
        let (guest, services) = Guest::booting(seed);
        run.guest = guest;
        let mut booted = CheckpointId(0);
        for service in services {
            for _ in 0..6 {
                let evaluation = run.step();
                assert!(evaluation.learning && says(evaluation, "settling: "), "{}", describe(evaluation));
                booted = evaluation.checkpoint;
            }
            run.guest.restart(&service);
        }
        run.guest.rush = 1.0;
        for _ in 0..80 {
            run.step();
        }
        for evaluation in &run.evaluations {
            assert_ne!(evaluation.verdict, Verdict::Bad, "seed {seed}: {}", describe(evaluation));
        }
        let suspects = run.evaluations.iter().filter(|evaluation| !evaluation.is_clean()).count();
        assert!(suspects <= 1, "seed {seed}: {suspects} suspects");
        let good: Vec<_> = run.evaluations.iter().flat_map(|evaluation| &evaluation.settled).collect();
        assert!(good.iter().all(|good| **good > booted), "seed {seed}: {booted} and {:?}", good.first());
        assert!(good.len() >= 40, "seed {seed}: {} good", good.len());
    }
}

#[test]
fn a_broken_invariant_is_bad_while_the_guest_boots() {
    let mut run = Run::new(1);
    run.guest = Guest::booting(1).0;
    run.step();
    run.guest.violation = true;
    assert_eq!(run.step().verdict, Verdict::Bad);
}

#[test]
fn a_guest_that_never_settles_is_learnt_after_the_longest_wait() {
    let mut run = Run::new(3);
    let mut waited_s = 0.0;
    let from_s = run.guest.uptime_s;
    for at in 0..800 {
        // Another service starts every few seconds.
        if at % 5 == 0 {
            run.guest.start_service(&format!("service-{at}"), 20.0, 0.0);
        }
        let evaluation = run.step();
        if says(evaluation, "the longest wait is over") {
            waited_s = run.guest.uptime_s - from_s;
            break;
        }
        assert!(evaluation.learning && evaluation.is_clean());
    }
    assert!((300.0..310.0).contains(&waited_s), "{waited_s}");
    assert!(!run.evaluator.is_learning());
}

#[test]
fn a_service_that_starts_later_is_reported_and_then_accepted_and_faults_are_still_detected() {
    let config = Config::default();
    for seed in SEEDS {
        let mut run = learnt(seed);
        let started_s = run.guest.uptime_s;
        let from = run.evaluations.len();
        let steps = accept_a_service(&mut run);
        let reported = run.evaluations[from..].iter().position(|e| e.verdict == Verdict::Bad);
        assert!(reported.is_some_and(|at| at < 4), "seed {seed}: {reported:?}");
        let lasted_s = run.guest.uptime_s - started_s;
        assert!(
            lasted_s >= config.lasting_s && steps >= config.lasting_checkpoints,
            "seed {seed}: {lasted_s} s"
        );
        assert!(lasted_s < 2.0 * config.lasting_s, "seed {seed}: {lasted_s} s");
        let accepted = run.evaluations.last().expect("some");
        assert!(says(accepted, Evaluation::CHANGE_ACCEPTED) && accepted.is_clean(), "{}", describe(accepted));

        let from = run.evaluations.len();
        for _ in 0..60 {
            run.step();
        }
        let after = &run.evaluations[from..];
        let alarms: Vec<_> = after.iter().filter(|e| !e.is_clean()).map(describe).collect();
        assert!(alarms.len() <= 1 && after.iter().all(|e| e.verdict != Verdict::Bad), "{seed}: {alarms:?}");
        assert!(after.iter().flat_map(|e| &e.settled).count() >= 40, "seed {seed}");
        run.guest.inject(Fault::RUNAWAY, "runaway");
        assert!((0..4).any(|_| run.step().verdict == Verdict::Bad), "seed {seed}");
    }
}

#[test]
fn a_leak_and_a_broken_invariant_are_reported_and_never_accepted() {
    for seed in SEEDS {
        for leak_pages_per_s in [400.0, 1500.0] {
            let mut run = learnt(seed);
            run.guest.fault = Fault { leak_pages_per_s, ..Fault::default() };
            let mut reported = false;
            for _ in 0..400 {
                let evaluation = run.step();
                reported |= evaluation.verdict == Verdict::Bad;
                assert!(
                    !evaluation.change_accepted,
                    "seed {seed}, {leak_pages_per_s}: {}",
                    describe(evaluation)
                );
            }
            assert!(reported, "seed {seed}, {leak_pages_per_s}");
        }
        let mut run = learnt(seed);
        run.guest.start_service("rootkit", 3000.0, 0.34);
        run.guest.violation = true;
        for _ in 0..300 {
            let evaluation = run.step();
            assert!(evaluation.verdict == Verdict::Bad && !evaluation.change_accepted, "seed {seed}");
        }
    }
}

#[test]
fn a_rollback_to_before_an_accepted_change_returns_to_the_old_normal() {
    for seed in SEEDS {
        let mut run = learnt(seed);
        let before = run.evaluations.last().expect("some").checkpoint;
        accept_a_service(&mut run);
        for _ in 0..8 {
            run.step();
        }
        let after = run.evaluations.last().expect("some").checkpoint;
        run.roll_back(before);
        let from = run.evaluations.len();
        for _ in 0..30 {
            run.step();
        }
        run.roll_back(after);
        for _ in 0..30 {
            run.step();
        }
        let alarms: Vec<_> = run.evaluations[from..].iter().filter(|e| !e.is_clean()).map(describe).collect();
        let is_bad = run.evaluations[from..].iter().any(|e| e.verdict == Verdict::Bad || e.learning);
        assert!(!is_bad && alarms.len() <= 1, "seed {seed}: {alarms:?}");
        // From the old normal the same service is news again.
        run.roll_back(before);
        run.guest.start_service("cache-server", 12_000.0, 0.6);
        assert!((0..4).any(|_| run.step().verdict == Verdict::Bad), "seed {seed}");
    }
}

#[test]
fn the_database_alone_leads_to_the_same_segments() {
    let mut run = StoredRun::new(3);
    run.learn();
    for _ in 0..12 {
        run.step();
    }
    let before = run.records.last().expect("some").id;
    run.guest.start_service("cache-server", 12_000.0, 0.6);
    assert!((0..400).any(|_| run.step().change_accepted), "not accepted");
    for _ in 0..6 {
        run.step();
    }
    run.roll_back(before);
    run.step();
    let mut again = Evaluator::new(Config::default());
    for (record, evaluation) in run.records.iter().zip(&run.evaluations) {
        let load = |id| Sample::load(run.catalogue(), id).ok();
        let parent = record.parent.and_then(load);
        let sample = load(record.id).expect("facts");
        assert_eq!(again.evaluate(&sample, parent.as_ref()), *evaluation);
    }
    let mut loaded = Evaluator::load(run.catalogue(), run.machine, Config::default()).expect("a history");
    let newest = run.records.last().expect("some").id;
    let online = run.step();
    let load = |id| Sample::load(run.catalogue(), id).expect("facts");
    assert_eq!(loaded.evaluate(&load(online.checkpoint), Some(&load(newest))), online);
}
