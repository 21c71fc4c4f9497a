use retrovisor_guest::VcpuRegisters;

use super::{code::Code, protections::kernel_space};
use crate::fact::{Gate, Violation, ViolationKind};

const GATES: usize = 256;
const GATE_BYTES: usize = 16;
const PRESENT: u8 = 0x80;
const INTERRUPT: u8 = 14;
const TRAP: u8 = 15;

/// Every gate of the kernel's own table. `None` when the table cannot be read.
pub(crate) fn read(code: &Code) -> Option<Vec<Gate>> {
    let mut bytes = vec![0; GATES * GATE_BYTES];
    code.probe.reader.read(code.probe.symbol("idt_table")?, &mut bytes)?;
    let gate = |(vector, gate): (u32, &[u8; GATE_BYTES])| {
        let handler = handler_of(gate);
        Gate {
            vector,
            handler,
            symbol: code.label(handler),
            kind: match gate[5] & 0x1f {
                INTERRUPT => "interrupt".to_owned(),
                TRAP => "trap".to_owned(),
                other => other.to_string(),
            },
            dpl: (gate[5] >> 5 & 3).into(),
            stack: (gate[4] & 7).into(),
            present: gate[5] & PRESENT != 0,
        }
    };
    Some((0..).zip(bytes.as_chunks::<GATE_BYTES>().0).map(gate).collect())
}

/// Gates that lead out of the kernel's code, or elsewhere than in the first observation; and vCPUs that use another
/// table.
pub(crate) fn redirected(
    code: &Code,
    vcpus: &[VcpuRegisters],
    gates: &[Gate],
    first: Option<&[Gate]>,
) -> Vec<Violation> {
    let probe = code.probe;
    let Some(table) = probe.symbol("idt_table") else { return Vec::new() };
    let mut violations = Vec::new();
    for (number, vcpu) in vcpus.iter().enumerate() {
        let Some(space) = kernel_space(vcpu) else { continue };
        // The table is mapped a second time, read-only: the frames are compared, not the addresses.
        let used = space.translate(probe.reader.pages(), vcpu.idt.base);
        let own = probe.kernel.image_gpa(table);
        if used.is_some() && used != own {
            violations.push(Violation {
                kind: ViolationKind::IdtRedirected,
                object: format!("vCPU {number} IDT"),
                symbol: Some("idt_table".into()),
                detail: "the processor uses another table of interrupt gates than the kernel's".into(),
                expected: format!("{table:#018x}"),
                found: format!("{:#018x}", vcpu.idt.base),
            });
        }
    }
    // Exceptions that processors do not raise keep the gates of early boot, whose code is freed after boot.
    let early =
        probe.symbol("early_idt_handler_array").and_then(|at| Some(at..at + probe.kernel.place(at)?.size));
    for (at, gate) in gates.iter().enumerate().filter(|(_, gate)| gate.present) {
        let before = first.and_then(|first| first.get(at));
        let lawful = code.is_kernel_text(gate.handler)
            || early.as_ref().is_some_and(|early| early.contains(&gate.handler));
        // A gate that was not in use may come into use.
        let moved = before.filter(|before| before.present && before.handler != gate.handler);
        let opened = before.filter(|before| before.present && before.dpl < gate.dpl);
        let detail = match () {
            () if !lawful => "an interrupt gate leads out of the kernel's code",
            () if moved.is_some() => "an interrupt gate leads elsewhere than at first",
            () if opened.is_some() => "an interrupt gate was opened to processes",
            () => continue,
        };
        violations.push(Violation {
            kind: ViolationKind::IdtRedirected,
            object: format!("gate {}", gate.vector),
            symbol: before.and_then(|before| before.symbol.clone()).or_else(|| Some("idt_table".into())),
            detail: detail.into(),
            expected: before.map_or_else(|| "kernel text".into(), |before| code.describe(before.handler)),
            found: code.describe(gate.handler),
        });
    }
    violations
}

/// The address in a gate, whose bytes are in three places.
fn handler_of(gate: &[u8; GATE_BYTES]) -> u64 {
    let bytes = [gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]];
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_put_together() {
        let mut gate = [0; 16];
        (gate[0], gate[1], gate[6], gate[11]) = (0x90, 0x09, 0x20, 0xff);
        assert_eq!(handler_of(&gate), 0xff00_0000_0020_0990);
    }
}
