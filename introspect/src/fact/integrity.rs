use super::cell::Named;

/// The kinds of violated invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// A system call leads to another function than its own.
    SyscallRedirected,
    /// A task is missing from one of the views that must have it.
    HiddenTask,
    /// A module is missing from one of the views that must have it.
    HiddenModule,
    /// Code of the kernel or a module changed, and no table of the kernel explains it.
    TextChanged,
    /// Constant data of the kernel or a module changed.
    RodataChanged,
    /// The function tracer calls code that is not the kernel's.
    FtraceHook,
    /// A kprobe calls code that is not the kernel's.
    KprobeHook,
    /// A packet hook calls code that belongs to no module, or to a hidden one.
    NetfilterHook,
    /// A table of operations, or an entry of one, is outside the kernel and its modules.
    OperationsRedirected,
    /// A process has a credential that it cannot have obtained by the kernel's rules.
    ForgedCredential,
    /// An interrupt gate, or the table of gates, leads to another address than expected.
    IdtRedirected,
    /// A protection was disabled in a control register.
    ControlRegister,
    /// The SYSCALL entry address is not the kernel's.
    Lstar,
}

impl ViolationKind {
    /// The name in the column `kind`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SyscallRedirected => "syscall_redirected",
            Self::HiddenTask => "hidden_task",
            Self::HiddenModule => "hidden_module",
            Self::TextChanged => "text_changed",
            Self::RodataChanged => "rodata_changed",
            Self::FtraceHook => "ftrace_hook",
            Self::KprobeHook => "kprobe_hook",
            Self::NetfilterHook => "netfilter_hook",
            Self::OperationsRedirected => "operations_redirected",
            Self::ForgedCredential => "forged_credential",
            Self::IdtRedirected => "idt_redirected",
            Self::ControlRegister => "control_register",
            Self::Lstar => "lstar",
        }
    }
}

fact! {
    /// One violated invariant. A healthy guest has none.
    pub struct Violation in "fact_integrity" {
        /// Which invariant.
        pub kind: ViolationKind => text,
        /// The subject: `getppid`, `task 412`, `module dummy`, `gate 14`, `vCPU 0 CR4`.
        pub object: String => text sought,
        /// The kernel symbol concerned, where there is one.
        pub symbol: Option<String> => text,
        /// Where and how the violation was detected.
        pub detail: String => text,
        /// The expected value.
        pub expected: String => text,
        /// The value found.
        pub found: String => text,
    }
    question "integrity": "Invariants that are violated"
        titled "Violated invariants" from "SELECT kind, object, symbol, detail, expected, found FROM fact_integrity WHERE checkpoint = ?1";
}

impl Named for ViolationKind {
    fn name(&self) -> &'static str {
        Self::name(*self)
    }
}
