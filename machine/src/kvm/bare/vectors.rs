use retrovisor_guest::{Machine, MachineError};

use super::{CODE, counters, word};
use crate::kvm::Boot;

std::arch::global_asm!(
    r"
    .pushsection .rodata
    .globl retrovisor_bare_vectors_start
    .globl retrovisor_bare_vectors_end
retrovisor_bare_vectors_start:
    mov r15, 0x100000            # mail
    mov r14, rdi                 # vCPU
    lea r13, [r14 + 1]
    shl r13, 6
    add r13, r15                 # this vCPU's counters
    lea rsp, [r14 + 1]
    shl rsp, 12
    lea r12, [rsp + 0x150000]    # a page for two blocks of 64 bytes: what ought to be, and what is
    add rsp, 0x140000            # a page of stack each
    mov eax, 1
    xor ecx, ecx
    cpuid
    and ecx, 0x14000000          # XSAVE and AVX
    cmp ecx, 0x14000000
    je 2f
    mov qword ptr [r13 + 24], 1
1:
    hlt
    jmp 1b
2:
    mov rax, cr4
    or rax, 0x40000              # OSXSAVE
    mov cr4, rax
    mov eax, 0xd
    xor ecx, ecx
    cpuid
    and eax, 0xe7                # x87, SSE, AVX, the three of AVX-512
    mov ebx, eax
    and ebx, 0xe0
    cmp ebx, 0xe0
    je 3f
    and eax, 7
3:
    mov ebx, eax
    xor ecx, ecx
    xor edx, edx
    xsetbv
    mov [r13 + 8], rbx

    # To user mode, which a KVM that interprets kernel mode runs on the processor: it may know no AVX itself.
    mov ecx, 0x10000
    lock or qword ptr [rcx], 4
    mov ecx, 0x11000
    lock or qword ptr [rcx], 4
    mov ecx, 0x12000
    lock or qword ptr [rcx], 4
    mov rax, cr3
    mov cr3, rax
    mov ecx, 0x130000            # descriptors: none, those of the start, user code and data
    mov qword ptr [rcx], 0
    mov qword ptr [rcx + 8], 0
    mov rax, 0x00af9b000000ffff
    mov [rcx + 16], rax
    mov rax, 0x00cf93000000ffff
    mov [rcx + 24], rax
    mov rax, 0x00affb000000ffff
    mov [rcx + 32], rax
    mov rax, 0x00cff3000000ffff
    mov [rcx + 40], rax
    mov rax, rsp
    sub rsp, 16
    mov word ptr [rsp], 47
    mov [rsp + 2], rcx
    lgdt [rsp]
    add rsp, 16
    push 0x2b
    push rax
    push 2
    push 0x23
    lea rax, [rip + 4f]
    push rax
    iretq

4:  # a round: all registers are filled, wait, and are looked at
    mov rax, [r13]
    inc rax
    mov r11, 0x9e3779b97f4a7c15
    imul r11, rax
    .irp at, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    mov ecx, \at
    call 20f
    vmovdqu ymm\at, [r12]
    .endr
    test ebx, 0xe0
    jz 5f
    .irp at, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov ecx, \at
    call 20f
    vmovdqu64 zmm\at, [r12]
    .endr
    .irp at, 1,2,3,4,5,6,7
    lea ecx, [\at + 32]
    call 20f
    kmovw k\at, [r12]
    .endr
5:
    mov [r13], rax
    mov ecx, 20000
6:
    dec ecx
    jnz 6b
    test ebx, 0xe0
    jnz 7f
    .irp at, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    mov ecx, \at
    call 20f
    vmovdqu [r12 + 64], ymm\at
    mov edx, 4
    call 30f
    .endr
    jmp 4b
7:
    .irp at, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov ecx, \at
    call 20f
    vmovdqu64 [r12 + 64], zmm\at
    mov edx, 8
    call 30f
    .endr
    .irp at, 1,2,3,4,5,6,7
    lea ecx, [\at + 32]
    call 20f
    movzx esi, word ptr [r12]
    kmovw edi, k\at
    mov [r12], rsi
    mov [r12 + 64], rdi
    mov edx, 1
    call 30f
    .endr
    jmp 4b

20: # what register ECX ought to hold, from the round in R11: eight words, no two alike
    mov rsi, r11
    xor rsi, rcx
    mov edx, 8
21:
    imul rsi, rsi, 0x2545f491
    add rsi, rdx
    rol rsi, 23
    mov [r12 + rdx * 8 - 8], rsi
    dec edx
    jnz 21b
    ret

30: # compares EDX words of what ought to be with what is, and counts those that differ
    mov rsi, [r12 + rdx * 8 - 8]
    cmp rsi, [r12 + rdx * 8 + 56]
    je 31f
    inc qword ptr [r13 + 16]
31:
    dec edx
    jnz 30b
    ret
retrovisor_bare_vectors_end:
    .popsection
"
);

unsafe extern "C" {
    static retrovisor_bare_vectors_start: u8;
    static retrovisor_bare_vectors_end: u8;
}

/// A guest whose vCPUs keep numbers in all their vector registers (AVX, and AVX-512 if available), different ones in
/// each round, wait, and check them. Its code runs in user mode.
#[must_use]
pub fn vectors() -> Boot {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    let image = unsafe {
        let (start, end) = (&raw const retrovisor_bare_vectors_start, &raw const retrovisor_bare_vectors_end);
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start)).to_vec()
    };
    Boot::Flat { image, at: CODE }
}

/// What a vCPU of [`vectors`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Rounds that it has begun.
    pub rounds: u64,
    /// The parts of extended state that it uses, as in its register XCR0; 0 before it has set them.
    pub parts: u64,
    /// Words that had a wrong value.
    pub wrong: u64,
    /// It found that its processor has no AVX, and sleeps.
    pub has_none: bool,
}

/// Reads what a vCPU of [`vectors`] reports.
pub fn registers(machine: &dyn Machine, vcpu: u64) -> Result<Registers, MachineError> {
    let mut at = counters(vcpu);
    let mut next = || {
        let value = word(machine, at);
        at.0 += 8;
        value
    };
    Ok(Registers { rounds: next()?, parts: next()?, wrong: next()?, has_none: next()? != 0 })
}
