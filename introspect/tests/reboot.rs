//! A guest that reboots, observed all the time: what one kernel leaves in memory and another one builds is no violation,
//! the kernel that runs then is another boot, and an attack on it is found.
#![expect(clippy::unwrap_used, reason = "a test")]

mod live;

use std::time::{Duration, Instant};

use live::{Guest, Setting};
use retrovisor_introspect::{Introspector, Linux, Observation, fact::ViolationKind};

/// How long a reboot may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// The last process that the guest's start starts.
const LAST: &str = "workload";

fn observe(guest: &mut Guest, introspector: &mut Introspector) -> Observation {
    guest.stop();
    let (memory, registers) = (guest.memory(), guest.registers());
    let observation = introspector.observe(&memory, &registers);
    guest.resume();
    observation
}

/// Moments of a reboot, by what was read in them.
#[derive(Debug, Default)]
struct Moments {
    without_kernel: u32,
    going_down: u32,
    booting: u32,
    running: u32,
}

/// Observes a guest, about every 50 ms, until it has booted again after `before`.
fn watch(guest: &mut Guest, introspector: &mut Introspector, before: &Linux) -> (Moments, Linux) {
    let (mut moments, mut moment, began) = (Moments::default(), 0_u64, Instant::now());
    loop {
        moment += 1;
        assert!(began.elapsed() < PATIENCE, "the guest does not reboot: {moments:?}");
        std::thread::sleep(Duration::from_millis(30 + moment * 7 % 40));
        let observation = observe(guest, introspector);
        let Some(linux) = observation.linux else {
            assert!(observation.reason.is_some());
            moments.without_kernel += 1;
            continue;
        };
        assert_eq!(linux.integrity, [], "{moments:?}, in state {:?}", linux.kernel.state);
        match linux.kernel.state.as_deref() {
            Some("running") => moments.running += 1,
            Some("panic" | "restart") => moments.going_down += 1,
            _ => {
                assert_eq!(linux.kernel.boot, None);
                moments.booting += 1;
            }
        }
        let again = linux.kernel.boot.is_some() && linux.kernel.boot != before.kernel.boot;
        if again && linux.tasks.iter().any(|task| task.comm == LAST) {
            return (moments, linux);
        }
    }
}

fn reboots(append: &'static str, ways: &[fn(&mut Guest)]) {
    let setting = Setting { accelerator: "tcg,thread=single", append, resets: true, ..Setting::default() };
    let Some(mut guest) = Guest::boot_on(&setting, None) else { return };
    let mut introspector = Introspector::new();
    let mut last = observe(&mut guest, &mut introspector).linux.unwrap();
    assert_eq!(last.integrity, []);
    for reboot in ways {
        reboot(&mut guest);
        let (moments, linux) = watch(&mut guest, &mut introspector, &last);
        eprintln!("{moments:?}: {:?}, then {:?}", last.kernel.boot, linux.kernel.boot);
        assert!(moments.without_kernel > 0 && moments.running > 0, "{moments:?}");
        assert!(linux.syscalls.len() > 100 || moments.running > 1, "a new boot has a new reference");
        last = linux;
    }
    an_attack_is_found(&mut guest, &mut introspector);
}

/// getppid leads to getpid.
fn an_attack_is_found(guest: &mut Guest, introspector: &mut Introspector) {
    guest.stop();
    let kernel = introspector.kernel().unwrap();
    let (memory, registers) = (guest.memory(), guest.registers());
    let number = kernel.syscall_number(&memory, "getppid").unwrap();
    let entry = kernel.syscall_sites(&memory, number).unwrap().table_entry.gpa;
    let other = kernel.symbol("__x64_sys_getpid").unwrap().to_le_bytes().to_vec();
    let found = guest.with_changed(&[(entry, other)], || introspector.observe(&memory, &registers));
    let kinds: Vec<_> = found.linux.unwrap().integrity.iter().map(|violation| violation.kind).collect();
    assert_eq!(kinds, [ViolationKind::SyscallRedirected, ViolationKind::RodataChanged]);
    assert_eq!(introspector.observe(&memory, &registers).linux.unwrap().integrity, []);
}

#[test]
fn a_reboot_to_another_place_is_no_violation() {
    reboots("", &[|guest| guest.type_in("reboot -f"), |guest| guest.type_in("echo c > /proc/sysrq-trigger")]);
}

/// The new kernel overwrites the old one.
#[test]
fn a_reboot_to_the_same_place_is_no_violation() {
    reboots("nokaslr", &[Guest::reset, |guest| guest.type_in("reboot -f")]);
}
