//! A running guest: permitted changes by its kernel are no violations, at whatever instant it is stopped, and violated
//! invariants are named. The correctness of facts is tested on stopped guests, in `guest_reports`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod live;

use std::{collections::BTreeSet, time::Duration};

use live::Guest;
use retrovisor_guest::{Gpa, VcpuRegisters};
use retrovisor_introspect::{
    Introspector, Kernel, Linux,
    fact::{Violation, ViolationKind},
};

#[test]
fn a_running_guest_is_watched_without_false_alarms() {
    let Some(mut guest) = Guest::start() else { return };
    let mut from_the_start = boot_is_no_violation(&mut guest);
    guest.wait_for_shell();
    let mut introspector = Introspector::new();

    guest.stop();
    let (memory, registers) = (guest.memory(), guest.registers());
    let observation = introspector.observe(&memory, &registers);
    let linux = observation.linux.as_ref().expect("a Linux guest");
    let kernel = introspector.kernel().unwrap();
    assert_eq!(linux.integrity, [], "a healthy guest has no violation");
    assert!(linux.syscalls.len() > 800 && linux.syscalls.iter().all(|call| call.in_text));

    let registers = guest.registers();
    let observation = introspector.observe(&memory, &registers);
    let linux = observation.linux.as_ref().unwrap();
    assert_eq!((linux.integrity.as_slice(), linux.syscalls.as_slice()), ([].as_slice(), [].as_slice()));
    attacks_are_named(&guest, &kernel, &mut introspector, &registers, linux);
    let late = from_the_start.observe(&memory, &registers).linux.unwrap();
    assert_eq!((late.integrity.as_slice(), late.syscalls.as_slice()), ([].as_slice(), [].as_slice()));
    guest.resume();

    // The other introspector has seen attacks.
    lawful_changes_are_no_violations(&mut guest, &mut from_the_start);
    moments_of_a_busy_guest_are_no_violations(&mut guest, &mut from_the_start);
}

fn attacks_are_named(
    guest: &Guest,
    kernel: &Kernel,
    introspector: &mut Introspector,
    registers: &[VcpuRegisters],
    linux: &Linux,
) {
    let memory = guest.memory();
    let word = |address: u64| {
        let mut bytes = [0; 8];
        kernel.read_virtual(&memory, address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let mut attack = |changes: &[(Gpa, Vec<u8>)], registers: &[VcpuRegisters]| -> Vec<Violation> {
        let found = guest.with_changed(changes, || introspector.observe(&memory, registers));
        let healed = introspector.observe(&memory, registers).linux.unwrap().integrity;
        if !changes.is_empty() {
            assert_eq!(healed, [], "what was put back is no violation any more");
        }
        found.linux.unwrap().integrity
    };
    let kinds =
        |violations: &[Violation]| violations.iter().map(|violation| violation.kind).collect::<Vec<_>>();

    // Redirects getppid to getpid: first by the call in `x64_sys_call`, then by the table.
    let number = kernel.syscall_number(&memory, "getppid").unwrap();
    assert_eq!(number, 110);
    let sites = kernel.syscall_sites(&memory, number).unwrap();
    let other = kernel.symbol("__x64_sys_getpid").unwrap();
    let call = sites.dispatch.expect("this kernel dispatches through x64_sys_call");
    assert_eq!((call.target, sites.symbol.as_deref()), (sites.target, Some("__x64_sys_getppid")));
    let displacement = call.displacement_to(other).unwrap().to_le_bytes().to_vec();
    let found = attack(&[(call.displacement_gpa, displacement)], registers);
    assert_eq!(kinds(&found), [ViolationKind::SyscallRedirected, ViolationKind::TextChanged]);
    let redirected = &found[0];
    assert_eq!(
        (redirected.object.as_str(), redirected.symbol.as_deref()),
        ("getppid", Some("__x64_sys_getppid"))
    );
    assert!(
        redirected.expected.contains("__x64_sys_getppid") && redirected.found.contains("__x64_sys_getpid")
    );
    assert_eq!(found[1].symbol.as_deref(), Some("x64_sys_call"));
    let found = attack(&[(sites.table_entry.gpa, other.to_le_bytes().to_vec())], registers);
    // The table is also constant data.
    assert_eq!(kinds(&found), [ViolationKind::SyscallRedirected, ViolationKind::RodataChanged]);
    let outside = linux.modules[0].address;
    let found = attack(&[(sites.table_entry.gpa, outside.to_le_bytes().to_vec())], registers);
    assert!(found[0].detail.contains("out of the kernel's code"), "{found:?}");

    // Overwrites the code of another function.
    let function = kernel.symbol("vfs_read").unwrap() + 40;
    let found = attack(&[(kernel.translate(&memory, function).unwrap(), vec![0xcc, 0x13])], registers);
    assert_eq!(kinds(&found), [ViolationKind::TextChanged]);
    assert_eq!(found[0].object, "vfs_read");
    // A new introspector detects it only after it has learnt the reference.
    let gpa = kernel.translate(&memory, function).unwrap();
    for (learns, seen) in [(true, 1), (false, 0)] {
        let mut fresh = Introspector::new();
        if learns {
            fresh.learn(&memory, registers);
        }
        let found = guest.with_changed(&[(gpa, vec![0xcc, 0x13])], || fresh.observe(&memory, registers));
        assert_eq!(found.linux.unwrap().integrity.len(), seen, "learns: {learns}");
    }

    // Redirects the page-fault gate.
    let gate = kernel.translate(&memory, kernel.symbol("idt_table").unwrap() + 14 * 16).unwrap();
    let found = attack(
        &[
            (gate, outside.to_le_bytes()[..2].to_vec()),
            (Gpa(gate.0 + 6), outside.to_le_bytes()[2..4].to_vec()),
        ],
        registers,
    );
    assert_eq!(kinds(&found), [ViolationKind::IdtRedirected]);
    assert_eq!(found[0].object, "gate 14");

    // Changes registers.
    let mut weak = registers.to_vec();
    weak[1].cr4 &= !(1 << 20);
    weak[0].cr0 &= !(1 << 16);
    weak[0].lstar = Some(outside);
    let found = attack(&[], &weak);
    assert_eq!(
        kinds(&found),
        [ViolationKind::ControlRegister, ViolationKind::ControlRegister, ViolationKind::Lstar]
    );

    // Removes a process and a module from their lists.
    let unlink = |link: u64| {
        let (next, previous) = (word(link), word(link + 8));
        vec![
            (kernel.translate(&memory, previous).unwrap(), next.to_le_bytes().to_vec()),
            (kernel.translate(&memory, next + 8).unwrap(), previous.to_le_bytes().to_vec()),
        ]
    };
    let init = kernel.symbol("init_task").unwrap();
    let first = linux.tasks.iter().find(|task| task.pid == 1).unwrap();
    // The list of init_task leads to the first process: this finds the offset of the link in a task.
    let link = (0..8192).step_by(8).find(|offset| {
        let next = word(init + offset);
        next == first.address + offset && word(next + 8) == init + offset
    });
    let link = link.expect("the link to the first process");
    let hidden = linux.tasks.iter().find(|task| task.comm == "httpd").unwrap();
    let found = attack(&unlink(hidden.address + link), registers);
    assert_eq!(kinds(&found), [ViolationKind::HiddenTask]);
    assert_eq!(found[0].object, format!("task {} (httpd)", hidden.pid));
    let found = attack(&unlink(word(kernel.symbol("modules").unwrap())), registers);
    assert_eq!(kinds(&found), [ViolationKind::HiddenModule]);
}

fn lawful_changes_are_no_violations(guest: &mut Guest, introspector: &mut Introspector) {
    let commands = [
        "mkdir -p /run/tracing && mount -t tracefs none /run/tracing; echo mounted",
        "echo 1 > /run/tracing/events/sched/enable; echo 1 > /run/tracing/events/syscalls/enable",
        "echo 'vfs_*' > /run/tracing/set_ftrace_filter; echo function > /run/tracing/current_tracer",
        "echo 'p:probe do_sys_openat2' > /run/tracing/kprobe_events; echo 1 > /run/tracing/events/kprobes/enable",
        "echo 0 > /run/tracing/events/kprobes/enable; echo > /run/tracing/kprobe_events",
        "rmmod virtio_rng; echo nop > /run/tracing/current_tracer",
        "insmod $(find /lib/modules -name virtio_rng.ko | head -n 1)",
        "echo 0 > /run/tracing/events/enable",
    ];
    let mut changed = 0;
    for command in commands {
        let said = guest.run(&format!("{{ {command}; }} 2>&1"));
        guest.stop();
        let (memory, registers) = (guest.memory(), guest.registers());
        let observation = introspector.observe(&memory, &registers);
        guest.resume();
        let linux = observation.linux.expect("a Linux guest");
        assert_eq!(linux.integrity, [], "after {command}: {said}");
        changed = changed.max(observation.memory.kernel_text_pages_changed);
        eprintln!(
            "{} text pages differ after {command} {said}",
            observation.memory.kernel_text_pages_changed
        );
    }
    assert!(changed > 0, "tracing changes code, or this test proves nothing");
}

/// Processes are created and end by the hundred: at no instant is one reported as hidden.
fn moments_of_a_busy_guest_are_no_violations(guest: &mut Guest, introspector: &mut Introspector) {
    guest.run("(for n in 1 2 3; do (while :; do /bin/true; insmod /nothing; done) & done) >/dev/null 2>&1");
    let (mut torn, mut forks) = (0, BTreeSet::new());
    for moment in 0..60 {
        std::thread::sleep(Duration::from_millis(7 + moment * 13 % 31));
        guest.stop();
        let (memory, registers) = (guest.memory(), guest.registers());
        let linux = introspector.observe(&memory, &registers).linux.expect("a Linux guest");
        guest.resume();
        assert_eq!(linux.integrity, [], "at moment {moment}");
        torn += u32::from(linux.kernel.torn);
        forks.extend(
            linux
                .counters
                .iter()
                .filter(|counter| counter.name == "total_forks")
                .map(|counter| counter.value),
        );
    }
    let (first, last) = (forks.first().unwrap(), forks.last().unwrap());
    assert!(last - first > 30, "only {} forks", last - first);
    eprintln!("60 moments with {} forks between them, {torn} torn", last - first);
}

/// From the firmware to the first process: no kernel, a kernel that is booting, a running one.
fn boot_is_no_violation(guest: &mut Guest) -> Introspector {
    let mut introspector = Introspector::new();
    let (mut without, mut with) = (0, 0);
    for moment in 0..400 {
        std::thread::sleep(Duration::from_millis(20));
        guest.stop();
        let (memory, registers) = (guest.memory(), guest.registers());
        let observation = introspector.observe(&memory, &registers);
        guest.resume();
        let Some(linux) = observation.linux else {
            assert!(observation.reason.is_some());
            without += 1;
            continue;
        };
        assert_eq!(linux.integrity, [], "at moment {moment}");
        with += 1;
        if linux.tasks.iter().any(|task| task.comm == "workload") {
            break;
        }
    }
    eprintln!("boot: {without} moments without a kernel, {with} with one");
    assert!(without > 0 && with > 0);
    introspector
}
