use serde::{Deserialize, Serialize};

/// The address and length of a descriptor table (IDT, GDT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Guest-virtual address of the first entry.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// The architectural registers of one x86-64 vCPU that reading its memory needs.
///
/// For introspection only: restoring uses the driver's own complete state ([`crate::StateSection`]). A value that the
/// driver does not know is `None`, never a guess.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuRegisters {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Control register 0 (paging, write protection).
    pub cr0: u64,
    /// Control register 2 (last page-fault address).
    pub cr2: u64,
    /// Control register 3 (page-table root, PCID).
    pub cr3: u64,
    /// Control register 4 (LA57, SMEP, SMAP…).
    pub cr4: u64,
    /// `MSR_EFER` (long mode, NX).
    pub efer: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Current base of GS (the kernel's per-CPU area in kernel mode).
    pub gs_base: u64,
    /// Current privilege level, 0 to 3.
    pub privilege: u8,
    /// Whether the vCPU waits in HLT.
    pub halted: bool,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// `MSR_KERNEL_GS_BASE`.
    pub kernel_gs_base: Option<u64>,
    /// `MSR_LSTAR`: where SYSCALL enters the kernel.
    pub lstar: Option<u64>,
}
