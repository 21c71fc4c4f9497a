use retrovisor_guest::{MachineError, MachineState, StateSection};

use super::machine::{VCPU_FORMAT, VM_FORMAT};
use super::state::decode;
use super::vcpu::VcpuState;
use super::vm::VmState;

/// Names the parts in which two states of a microVM differ, except those that change while a guest is paused: clocks,
/// time-stamp counters, and the current counts of timers.
pub fn compare_states(one: &MachineState, other: &MachineState) -> Result<Vec<String>, MachineError> {
    if !one.sections.iter().map(|part| &part.format).eq(other.sections.iter().map(|part| &part.format)) {
        return Ok(vec!["the list of parts".into()]);
    }
    let mut differing = Vec::new();
    let mut vcpu = 0;
    for (left, right) in one.sections.iter().zip(&other.sections) {
        match &left.format[..] {
            VM_FORMAT => {
                let [left, right] = both::<VmState>("the virtual machine", left, right)?;
                differing.extend(left.differences(&right).into_iter().map(Into::into));
            }
            VCPU_FORMAT => {
                let [left, right] = both::<VcpuState>("a vCPU", left, right)?;
                differing
                    .extend(left.differences(&right).into_iter().map(|part| format!("vCPU {vcpu}: {part}")));
                vcpu += 1;
            }
            _ if left.bytes == right.bytes => {}
            format => differing.push(format.into()),
        }
    }
    Ok(differing)
}

fn both<T: serde::de::DeserializeOwned>(
    what: &str,
    left: &StateSection,
    right: &StateSection,
) -> Result<[T; 2], MachineError> {
    Ok([decode(what, &left.bytes)?, decode(what, &right.bytes)?])
}
