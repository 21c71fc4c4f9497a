use std::time::Duration;

use retrovisor_guest::{ClockPolicy, Machine as _, MemoryLayout, StateIo as _};
use retrovisor_machine::kvm::KvmMachine;

use crate::bare;

std::arch::global_asm!(
    r"
    .globl bare_echo_start
    .globl bare_echo_end
bare_echo_start:
    mov dx, 0x3fd                # line status
2:
    in al, dx
    test al, 1                   # data ready
    jz 2b
    mov dx, 0x3f8
    in al, dx
    add al, 1
    out dx, al
    mov dx, 0x3fd
    jmp 2b
bare_echo_end:
"
);

unsafe extern "C" {
    static bare_echo_start: u8;
    static bare_echo_end: u8;
}

/// A guest that replies to every byte with its successor.
fn launch() -> Option<KvmMachine> {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    let image = unsafe {
        let length = (&raw const bare_echo_end).offset_from_unsigned(&raw const bare_echo_start);
        std::slice::from_raw_parts(&raw const bare_echo_start, length).to_vec()
    };
    bare::launch_image(image, MemoryLayout::flat(16 << 20).unwrap(), 1)
}

/// The guest's output from `offset` on, once it is this long.
fn hear(machine: &KvmMachine, offset: u64, length: usize) -> Vec<u8> {
    let output = machine.console_output();
    while output.end() < offset + length as u64 {
        assert!(output.wait(output.end(), Duration::from_secs(30)), "the guest says no more");
    }
    output.since(offset).0
}

#[test]
fn what_is_typed_arrives_in_order_however_much_it_is() {
    let Some(mut machine) = launch() else { return };
    let input = machine.console_input();
    let text: Vec<u8> = (0_u32..5_000).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
    assert_eq!(input.type_in(&text[..100]), 100);
    assert_eq!(input.waiting_bytes(), 100, "a machine that stands still takes nothing");
    machine.resume().unwrap();
    assert_eq!(input.type_in(&text[100..]), text.len() - 100);
    let expected: Vec<u8> = text.iter().map(|byte| byte.wrapping_add(1)).collect();
    assert_eq!(hear(&machine, 0, text.len()), expected);
    assert_eq!(input.waiting_bytes(), 0);
    drop(machine);
    assert_eq!(input.type_in(b"nobody"), 6, "and nothing bad happens");
}

#[test]
fn a_rollback_brings_back_what_the_port_held_and_nothing_else() {
    let Some(mut machine) = launch() else { return };
    let (input, output) = (machine.console_input(), machine.console_output());
    machine.resume().unwrap();
    assert_eq!(input.type_in(b"ab"), 2);
    assert_eq!(hear(&machine, 0, 2), b"bc");
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    assert_eq!(input.type_in(b"cd"), 2);
    machine.resume().unwrap();
    assert_eq!(hear(&machine, 2, 2), b"de");
    machine.pause().unwrap();
    // This guest has no state in memory.
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    assert_eq!(output.end(), 4, "what was said stays said");
    machine.resume().unwrap();
    assert_eq!(input.type_in(b"x"), 1);
    assert_eq!(hear(&machine, 4, 1), b"y");
}
