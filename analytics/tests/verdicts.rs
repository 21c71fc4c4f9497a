//! How often the evaluator is wrong, over many guests: false alarms, misses, delay, cause.
#![allow(clippy::cast_precision_loss, reason = "counts of a few thousand")]

mod synthetic;

use retrovisor_analytics::{Evaluation, Sample};
use retrovisor_snapshot::Verdict;
use synthetic::Fault;
use synthetic::run::Run;

/// Runs `work` for every seed on both processors, and gives the results in the order of the seeds.
fn for_seeds<T: Send>(seeds: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let threads =
        std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let mut results: Vec<(u32, T)> = std::thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    (0..seeds)
                        .filter(|seed| seed % threads == thread)
                        .map(|seed| (seed, work(seed)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        started.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    results.sort_by_key(|(seed, _)| *seed);
    results.into_iter().map(|(_, result)| result).collect()
}

fn learnt(seed: u32) -> Run {
    let mut run = Run::new(seed.into());
    while run.evaluator.is_learning() {
        run.step();
    }
    run
}

fn describe(evaluation: &Evaluation) -> String {
    let reasons: Vec<_> = evaluation.reasons.iter().map(|r| r.text.as_str()).collect();
    format!("{:?} p {:?}: {}", evaluation.verdict, evaluation.p_value, reasons.join(" | "))
}

/// Injects a fault into a guest that ran clean for a while; the first bad checkpoint after it, counted from 1.
fn delay(run: &mut Run, fault: Fault, comm: &str) -> Option<usize> {
    for _ in 0..10 {
        run.step();
    }
    run.guest.inject(fault, comm);
    (1..=8).find(|_| run.step().verdict == Verdict::Bad)
}

#[test]
fn clean_guests_are_hardly_ever_called_bad() {
    const CLEAN: usize = 40;
    let runs = for_seeds(120, |seed| {
        let mut run = learnt(seed);
        for _ in 0..CLEAN {
            run.step();
        }
        run.evaluations.split_off(run.evaluations.len() - CLEAN)
    });
    let with = |verdict| move |evaluation: &&Evaluation| evaluation.verdict == verdict;
    let bad_runs = runs.iter().filter(|run| run.iter().any(|j| j.verdict == Verdict::Bad)).count();
    let suspects = runs.iter().flatten().filter(with(Verdict::Suspect)).count();
    for alarm in runs.iter().flatten().filter(|evaluation| !evaluation.is_clean()) {
        eprintln!("{}", describe(alarm));
    }
    let all = runs.iter().flatten().count();
    eprintln!(
        "bad in {bad_runs} of {} clean runs of {CLEAN}; {suspects} suspects in {all} checkpoints",
        runs.len()
    );
    assert!(bad_runs * 100 <= runs.len(), "bad in more than 1 % of clean runs");
    assert!(suspects * 200 <= all, "more than 0.5 % suspects");

    // The p-value is about what it says where it is counted, in spite of the likeness of neighbours.
    for level in [0.1, 0.2, 0.5] {
        let below = runs.iter().flatten().filter(|j| j.p_value.is_some_and(|p| p <= level)).count();
        eprintln!("p <= {level}: {below} of {all}");
        assert!(below as f64 <= 1.3 * level * all as f64, "p <= {level} in {below} of {all}");
    }
}

#[test]
fn a_rollback_is_no_anomaly() {
    let alarms = for_seeds(40, |seed| {
        let mut run = learnt(seed);
        let mut alarms = 0;
        for round in 0..6 {
            for _ in 0..4 {
                alarms += usize::from(run.step().verdict == Verdict::Bad);
            }
            // What the guest did since the last one is checkpointed just before it goes back.
            run.guest.run(0.07);
            alarms += usize::from(!run.checkpoint().is_clean());
            let at = run.evaluations.len() - 3 - round % 2;
            run.roll_back(run.evaluations[at].checkpoint);
            // A clock that was not restored includes the time in which the guest did not run.
            run.guest.uptime_s += if round % 2 == 0 { 6.0 } else { 0.0 };
            run.guest.run(0.06);
            alarms += usize::from(!run.checkpoint().is_clean());
        }
        alarms
    });
    assert_eq!(alarms.iter().sum::<usize>(), 0, "bad ones, or suspects beside the rollback: {alarms:?}");
}

#[test]
fn a_runaway_is_bad_within_four_checkpoints_and_named() {
    // Under a name of its own, and under the name of the workload that is always there.
    for comm in ["runaway", "workload"] {
        let mut delays = for_seeds(60, |seed| {
            let mut run = learnt(seed);
            let delay = delay(&mut run, Fault::RUNAWAY, comm).unwrap_or(99);
            let last = run.evaluations.last().expect("evaluated");
            assert!(delay <= 4, "seed {seed}: {delay} {}", describe(last));
            let named = last.reasons.first().is_some_and(|reason| reason.subject == format!("task {comm}"));
            assert!(named, "seed {seed}: {}", describe(last));
            delay
        });
        delays.sort_unstable();
        eprintln!("{comm}: delay median {}, largest {}", delays[30], delays[59]);
    }
}

#[test]
fn one_burner_a_fork_storm_and_a_fast_leak_are_noticed() {
    let burner = Fault { burners: 1, ..Fault::default() };
    let storm = Fault { children_per_s: 60.0, ..Fault::default() };
    let hog = Fault { burners: 1, growth_pages_per_s: 8000.0, memory_max: 60_000.0, ..Fault::default() };
    for (name, fault) in [("burner", burner), ("storm", storm), ("hog", hog)] {
        let found =
            for_seeds(40, |seed| delay(&mut learnt(seed), fault, "culprit").is_some_and(|delay| delay <= 4));
        let found = found.iter().filter(|found| **found).count();
        eprintln!("{name}: {found} of 40 within 4");
        assert!(found >= 38, "{name}: {found} of 40");
    }
}

#[test]
fn a_broken_invariant_is_bad_at_once_even_while_learning() {
    for steps in [1, 5, 30] {
        let mut run = Run::new(9);
        for _ in 0..steps {
            run.step();
        }
        run.guest.violation = true;
        let evaluation = run.step();
        assert_eq!(evaluation.verdict, Verdict::Bad);
        assert!(evaluation.reasons[0].invariant && evaluation.reasons[0].text.contains("getppid"));
        assert!((evaluation.score - Evaluation::SCORE_MAX).abs() < 1e-9);
        // Alarms are not learnt from and make no checkpoint good.
        assert!(evaluation.settled.is_empty());
    }
}

#[test]
fn good_means_that_clean_ones_followed() {
    let mut run = learnt(2);
    for _ in 0..6 {
        run.step();
    }
    let settled: Vec<_> = run.evaluations.iter().flat_map(|evaluation| evaluation.settled.clone()).collect();
    let all: Vec<_> = run.evaluations.iter().map(|evaluation| evaluation.checkpoint).collect();
    assert_eq!(settled, all[..all.len() - 3], "each once, in order, three behind");

    // Nothing settles over a suspicion, nor on a line that was left.
    run.guest.inject(Fault::RUNAWAY, "runaway");
    for _ in 0..3 {
        run.step();
    }
    let last_good = *settled.last().expect("some");
    let late: Vec<_> = run.evaluations[all.len()..].iter().flat_map(|j| j.settled.clone()).collect();
    assert!(late.is_empty(), "{late:?}");
    run.roll_back(last_good);
    let from = run.evaluations.len();
    for _ in 0..6 {
        run.step();
    }
    let after: Vec<_> = run.evaluations[from..].iter().flat_map(|j| j.settled.clone()).collect();
    let line: Vec<_> = run.evaluations[from..].iter().map(|j| j.checkpoint).collect();
    assert_eq!(after, line[..3]);
}

#[test]
fn a_sample_without_clock_parent_or_tables_is_evaluated() {
    let mut run = learnt(1);
    let record = run.records.take(&run.guest);
    let evaluation = run.evaluator.evaluate(&Sample::from_tables(&record, &[]), None);
    assert_ne!(evaluation.verdict, Verdict::Bad, "{}", describe(&evaluation));
}
