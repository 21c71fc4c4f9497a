//! What a guest was at when it stopped answering, read from its memory: for tests that fail.

use std::fmt::Write as _;
use std::time::Duration;

use retrovisor_guest::Machine;
use retrovisor_introspect::Introspector;

/// How many of the kernel log's last lines are told.
const LAST_LINES: usize = 20;

/// Where each vCPU is, and the end of the kernel's log. The machine is left paused.
pub(crate) fn of(machine: &mut dyn Machine) -> String {
    let state = match machine.pause().map_err(|error| error.to_string()) {
        Ok(()) => machine.capture_state().map_err(|error| error.to_string()),
        Err(error) => Err(error),
    };
    let registers = match state {
        Ok(state) => state.vcpus,
        Err(error) => return format!("nothing more is known: {error}"),
    };
    let mut introspector = Introspector::new();
    let seen = introspector.observe(machine.memory(), &registers);
    let kernel = introspector.kernel();
    let mut text = String::new();
    for (number, vcpu) in registers.iter().enumerate() {
        let label = kernel.as_ref().and_then(|kernel| kernel.label(vcpu.rip)).unwrap_or_default();
        writeln!(
            text,
            "vCPU {number} at {:#x} {label}, rsp {:#x}, cr3 {:#x}, rflags {:#x}",
            vcpu.rip, vcpu.general[7], vcpu.cr3, vcpu.rflags
        )
        .unwrap();
    }
    match &seen.linux {
        Some(linux) => {
            for line in linux.log.iter().skip(linux.log.len().saturating_sub(LAST_LINES)) {
                writeln!(text, "{:12.6} {}", Duration::from_nanos(line.time_ns).as_secs_f64(), line.text)
                    .unwrap();
            }
        }
        None => writeln!(text, "{}", seen.reason.as_deref().unwrap_or("no Linux is found")).unwrap(),
    }
    text
}
