use retrovisor_guest::{Machine, MachineError};

use super::{CODE, counters, word};
use crate::kvm::Boot;

std::arch::global_asm!(
    r"
    .pushsection .rodata
    .globl retrovisor_bare_clockwork_start
    .globl retrovisor_bare_clockwork_end
retrovisor_bare_clockwork_start:
    mov r15, 0x100000            # mail
    mov r14, rdi                 # vCPU
    lea r13, [r14 + 1]
    shl r13, 6
    add r13, r15                 # this vCPU's counters
    mov r12d, 0xfee00000         # local APIC
    lea rsp, [r14 + 1]
    shl rsp, 12
    add rsp, 0x140000            # a page of stack each
    lea rdi, [rip + 30f]
    mov ecx, 0x30
    call 20f
    lea rdi, [rip + 40f]
    mov ecx, 0x31
    call 20f
    lea rdi, [rip + 50f]
    mov ecx, 0x20
    call 20f
    lea rdi, [rip + 60f]
    mov ecx, 0xff
    call 20f
    sub rsp, 16
    mov word ptr [rsp], 0xfff
    mov qword ptr [rsp + 2], 0x130000
    lidt [rsp]
    add rsp, 16
    mov dword ptr [r12 + 0xf0], 0x1ff    # on, spurious vector 0xff
    mov dword ptr [r12 + 0x3e0], 0xb     # timer: a tick each nanosecond
    cmp r14, 1
    je 11f
    ja 12f
    # vCPU 0: a periodic local timer, and the PC's timer by both of its ways
    mov dword ptr [r12 + 0x320], 0x20030
    mov dword ptr [r12 + 0x380], 2000000
    mov ebx, 0xfec00000          # I/O APIC: pin 0 gives vector 0x31 to APIC 0
    mov dword ptr [rbx], 0x11
    mov dword ptr [rbx + 0x10], 0
    mov dword ptr [rbx], 0x10
    mov dword ptr [rbx + 0x10], 0x31
    mov dword ptr [r12 + 0x350], 0x700   # LINT0: what the PIC says
    mov al, 0x11                 # PIC: line 0 gives vector 0x20
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34                 # PIT: a tick each 5 ms
    out 0x43, al
    mov al, 5966 & 255
    out 0x40, al
    mov al, 5966 >> 8
    out 0x40, al
    jmp 13f
11: # vCPU 1: a local timer that is set again each time
    mov dword ptr [r12 + 0x320], 0x30
    mov dword ptr [r12 + 0x380], 3000000
    jmp 13f
12: # the others: a deadline of the time-stamp counter, set again each time
    mov dword ptr [r12 + 0x320], 0x40030
    mfence
    call 25f
13:
    sti
    hlt
    cli
    call 28f
    inc qword ptr [r13]
    jmp 13b

20: # gate ECX of the interrupt descriptor table: RDI
    mov rdx, 0x130000
    shl ecx, 4
    add rdx, rcx
    mov word ptr [rdx], di
    mov word ptr [rdx + 2], 0x10
    mov word ptr [rdx + 4], 0x8e00
    shr rdi, 16
    mov word ptr [rdx + 6], di
    shr rdi, 16
    mov dword ptr [rdx + 8], edi
    mov dword ptr [rdx + 12], 0
    ret

25: # the next deadline
    rdtsc
    add eax, 6000000
    adc edx, 0
    mov ecx, 0x6e0
    wrmsr
    ret

28: # notes the time; counts when it went back
    rdtsc
    shl rdx, 32
    or rax, rdx
    cmp rax, [r13 + 32]
    jae 29f
    inc qword ptr [r13 + 40]
29:
    mov [r13 + 32], rax
    ret

30: # the local timer
    inc qword ptr [r13 + 8]
    cmp r14, 1
    jb 32f
    ja 31f
    mov dword ptr [r12 + 0x380], 3000000
    jmp 32f
31:
    call 25b
32:
    mov dword ptr [r12 + 0xb0], 0
    iretq

40: # the PC's timer, by the I/O APIC
    inc qword ptr [r13 + 16]
    mov dword ptr [r12 + 0xb0], 0
    iretq

50: # the same, by the PIC
    inc qword ptr [r13 + 24]
    mov al, 0x20
    out 0x20, al
60:
    iretq
retrovisor_bare_clockwork_end:
    .popsection
"
);

unsafe extern "C" {
    static retrovisor_bare_clockwork_start: u8;
    static retrovisor_bare_clockwork_end: u8;
}

/// A guest that sleeps (`hlt`) until a timer wakes it, and counts the causes. vCPU 0 has a periodic local timer and the
/// PC's timer, through the I/O APIC and through the PIC; vCPU 1 sets its local timer again each time; the others set
/// deadlines of the time-stamp counter.
#[must_use]
pub fn clockwork() -> Boot {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    let image = unsafe {
        let start = &raw const retrovisor_bare_clockwork_start;
        let end = &raw const retrovisor_bare_clockwork_end;
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start)).to_vec()
    };
    Boot::Flat { image, at: CODE }
}

/// What a vCPU of a [`clockwork`] has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    /// Times that it woke up.
    pub wakes: u64,
    /// Interrupts of its local timer.
    pub local: u64,
    /// Interrupts of the PC's timer by the I/O APIC.
    pub io_apic: u64,
    /// The same by the PIC.
    pub pic: u64,
    /// Its time-stamp counter when it last woke up.
    pub tsc: u64,
    /// Times that the counter was found to have gone back.
    pub back: u64,
}

/// Reads a vCPU's counts.
pub fn beats(machine: &dyn Machine, vcpu: u64) -> Result<Beats, MachineError> {
    let mut at = counters(vcpu);
    let mut next = || {
        let value = word(machine, at);
        at.0 += 8;
        value
    };
    Ok(Beats { wakes: next()?, local: next()?, io_apic: next()?, pic: next()?, tsc: next()?, back: next()? })
}
