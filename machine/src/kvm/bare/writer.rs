use retrovisor_guest::{Gpa, Machine, MachineError};

use super::{CODE, post};
use crate::kvm::Boot;

std::arch::global_asm!(
    r"
    .pushsection .rodata
    .globl retrovisor_bare_writer_start
    .globl retrovisor_bare_writer_end
retrovisor_bare_writer_start:
    mov r15, 0x100000            # mail
    mov r14, rdi                 # vCPU
    lea r13, [r14 + 1]
    shl r13, 6
    add r13, r15                 # this vCPU's counter
    mov dx, 0x3f8
    mov al, 'u'
    out dx, al
    mov al, 'p'
    out dx, al
2:
    mov rax, [r15 + 32]          # rounds to do; 0: without end
    test rax, rax
    jz 3f
    cmp [r13], rax
    jb 3f
    pause
    jmp 2b
3:
    mov rbx, [r15]               # first
    mov rcx, [r15 + 8]           # pages
    mov rsi, [r15 + 16]          # stride
    mov rax, [r13]
    inc rax
    test rcx, rcx
    jz 6f
4:
    lea rdx, [rbx + rax]         # never the same in two pages, nor in two rounds
    mov [rbx + r14 * 8], rdx
    mov rdx, [r15 + 24]          # turns of doing nothing
5:
    dec rdx
    jns 5b
    add rbx, rsi
    dec rcx
    jnz 4b
6:
    mov [r13], rax
    movdqu xmm0, [r13]           # an extended register that changes each round
    jmp 2b
retrovisor_bare_writer_end:
    .popsection
"
);

unsafe extern "C" {
    static retrovisor_bare_writer_start: u8;
    static retrovisor_bare_writer_end: u8;
}

/// A guest whose vCPUs write a word into each of some pages, round after round, and count the rounds.
#[must_use]
pub fn writer() -> Boot {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    let image = unsafe {
        let (start, end) = (&raw const retrovisor_bare_writer_start, &raw const retrovisor_bare_writer_end);
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start)).to_vec()
    };
    Boot::Flat { image, at: CODE }
}

/// The work of a [`writer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writing {
    /// Address of the first page; past the mail and the code, from 2 MiB on.
    pub first: Gpa,
    /// Pages written in a round.
    pub pages: u64,
    /// Bytes from one page to the next.
    pub stride_bytes: u64,
    /// Iterations of an empty loop after each page.
    pub idle_turns: u64,
    /// Rounds after which a vCPU waits for a higher number; 0: it never waits.
    pub rounds: u64,
}

/// Assigns work to a [`writer`]; the machine must be paused.
pub fn assign(machine: &mut dyn Machine, writing: &Writing) -> Result<(), MachineError> {
    let Writing { first, pages, stride_bytes, idle_turns, rounds } = *writing;
    post(machine, &[first.0, pages, stride_bytes, idle_turns, rounds])
}
