//! What a guest was at when it stopped answering, read from its memory: for tests that fail.

use std::fmt::Write as _;
use std::time::Duration;

use retrovisor_guest::{Machine, MachineError};
use retrovisor_introspect::{Introspector, Observation};

/// How many of the kernel log's last lines are printed.
const LAST_LINES: usize = 20;

/// Time between two reads of the vCPUs: one that is at the same address in both does not run.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Where each vCPU is, twice, and the end of the kernel's log. The machine is left paused.
pub(crate) fn of(machine: &mut dyn Machine) -> String {
    let mut text = String::new();
    let seen = look(machine, &mut text).and_then(|_| {
        machine.resume()?;
        std::thread::sleep(BETWEEN_LOOKS);
        look(machine, &mut text)
    });
    match seen.map(|seen| (seen.linux, seen.reason)) {
        Ok((Some(linux), _)) => {
            for line in linux.log.iter().skip(linux.log.len().saturating_sub(LAST_LINES)) {
                writeln!(text, "{:12.6} {}", Duration::from_nanos(line.time_ns).as_secs_f64(), line.text)
                    .unwrap();
            }
        }
        Ok((None, reason)) => writeln!(text, "{}", reason.as_deref().unwrap_or("no Linux is found")).unwrap(),
        Err(error) => writeln!(text, "nothing more is known: {error}").unwrap(),
    }
    text
}

fn look(machine: &mut dyn Machine, text: &mut String) -> Result<Observation, MachineError> {
    machine.pause()?;
    let registers = machine.capture_state()?.vcpus;
    let mut introspector = Introspector::new();
    let seen = introspector.observe(machine.memory(), &registers);
    let kernel = introspector.kernel();
    for (number, vcpu) in registers.iter().enumerate() {
        let label = kernel.as_ref().and_then(|kernel| kernel.label(vcpu.rip)).unwrap_or_default();
        writeln!(
            text,
            "vCPU {number} at {:#x} {label}, rsp {:#x}, cr3 {:#x}, rflags {:#x}{}",
            vcpu.rip,
            vcpu.general[7],
            vcpu.cr3,
            vcpu.rflags,
            if vcpu.halted { ", halted" } else { "" },
        )
        .unwrap();
    }
    Ok(seen)
}
