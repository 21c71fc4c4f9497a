//! Timers and interrupts: none is lost or wrong after pauses and rollbacks.

use std::time::{Duration, Instant};

use retrovisor_guest::{ClockPolicy, Machine as _, MemoryLayout};
use retrovisor_machine::kvm::KvmMachine;
use retrovisor_machine::kvm::bare::{Beats, beats, clockwork};

use crate::bare;
use crate::past::Past;

/// A guest with each kind of timer.
const VCPUS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(20);

fn launch() -> Option<KvmMachine> {
    bare::launch_boot(clockwork(), MemoryLayout::flat(8 << 20).unwrap(), VCPUS)
}

fn all(machine: &KvmMachine) -> Vec<Beats> {
    (0..VCPUS.into()).map(|vcpu| beats(machine, vcpu).unwrap()).collect()
}

/// Waits until every timer has expired this many further times.
fn wait_beats(machine: &KvmMachine, more: u64) {
    let before = all(machine);
    let began = Instant::now();
    loop {
        let now = all(machine);
        let is_done = now.iter().zip(&before).enumerate().all(|(vcpu, (now, before))| {
            now.wakes >= before.wakes + more
                && now.local >= before.local + more
                && (vcpu > 0 || now.io_apic >= before.io_apic + more && now.pic >= before.pic + more)
        });
        if is_done {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "a timer is dead: {before:#?} {now:#?} {:?}", machine.ended());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_timer_wakes_a_sleeping_guest_before_and_after_pauses() {
    let Some(mut machine) = launch() else { return };
    machine.resume().unwrap();
    wait_beats(&machine, 5);
    for _ in 0..100 {
        machine.pause().unwrap();
        let stood = all(&machine);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(all(&machine), stood);
        machine.resume().unwrap();
    }
    wait_beats(&machine, 5);
    assert!(all(&machine).iter().all(|beats| beats.back == 0));
}

#[test]
fn after_a_rollback_every_timer_goes_on() {
    let Some(mut machine) = launch() else { return };
    machine.resume().unwrap();
    wait_beats(&machine, 3);
    machine.pause().unwrap();
    let past = Past::of(&mut machine);
    let stood = all(&machine);
    for turn in 0..100 {
        machine.resume().unwrap();
        // The guest is stopped asleep in some rounds, and with a pending interrupt in others.
        std::thread::sleep(Duration::from_micros(300 + 131 * (turn % 50)));
        machine.pause().unwrap();
        past.put_back(&mut machine, ClockPolicy::StandStill);
        assert_eq!(all(&machine), stood, "turn {turn}");
        if turn % 10 == 0 {
            machine.resume().unwrap();
            wait_beats(&machine, 3);
            machine.pause().unwrap();
            assert!(all(&machine).iter().all(|beats| beats.back == 0), "turn {turn}");
        }
    }
}

/// One of several guests that continues after a second's pause, with a clock policy.
fn ticks_over_a_second(policy: ClockPolicy) -> Option<(u64, u64)> {
    let mut machine = launch()?;
    if policy == ClockPolicy::StandStill && !machine.moves_tsc() {
        eprintln!("SKIPPED: this host's KVM leaves the time-stamp counter to the hardware");
        return None;
    }
    machine.resume().unwrap();
    wait_beats(&machine, 3);
    let (tsc, at) = (all(&machine)[0].tsc, Instant::now());
    wait_beats(&machine, 40);
    let ticks = all(&machine)[0].tsc - tsc;
    let per_s = u128::from(ticks) * 1_000_000 / at.elapsed().as_micros();
    machine.pause().unwrap();
    let past = Past::of(&mut machine);
    let stood = all(&machine);
    std::thread::sleep(Duration::from_secs(1));
    past.put_back(&mut machine, policy);
    machine.resume().unwrap();
    wait_beats(&machine, 1);
    machine.pause().unwrap();
    let now = all(&machine);
    assert!(now.iter().all(|beats| beats.back == 0), "time went back: {now:?}");
    Some((now.iter().zip(&stood).map(|(now, stood)| now.tsc - stood.tsc).min()?, per_s.try_into().unwrap()))
}

#[test]
fn the_counter_stands_still_with_the_guest() {
    let Some((ticks, per_s)) = ticks_over_a_second(ClockPolicy::StandStill) else { return };
    assert!(ticks < per_s / 2, "{ticks} ticks of {per_s} a second");
}

#[test]
fn the_counter_goes_on_over_a_jump_to_now() {
    let Some((ticks, per_s)) = ticks_over_a_second(ClockPolicy::JumpToNow) else { return };
    assert!(ticks > per_s * 9 / 10, "{ticks} ticks of {per_s} a second");
}
