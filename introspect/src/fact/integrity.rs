use super::cell::Named;

/// Which invariant does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// A system call leads elsewhere than it must.
    SyscallRedirected,
    /// A task that one view has and another lacks.
    HiddenTask,
    /// A module that one view has and another lacks.
    HiddenModule,
    /// Code of the kernel or a module changed, and no table of the kernel explains it.
    TextChanged,
    /// Constant data of the kernel or a module changed.
    RodataChanged,
    /// The function tracer calls code that is not the kernel's.
    FtraceHook,
    /// A kprobe calls code that is not the kernel's.
    KprobeHook,
    /// Packets pass through code of nobody, or of a module that hides.
    NetfilterHook,
    /// A table of operations, or an entry of one, leads out of the kernel and its modules.
    OperationsRedirected,
    /// A process has a credential that it cannot have come by lawfully.
    ForgedCredential,
    /// An interrupt gate, or the table of gates, leads elsewhere than it must.
    IdtRedirected,
    /// A protection was switched off in a control register.
    ControlRegister,
    /// SYSCALL enters the kernel elsewhere than it must.
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
    /// One invariant that does not hold. A healthy guest has none, ever.
    pub struct Violation in "fact_integrity" {
        /// Which invariant.
        pub kind: ViolationKind => text,
        /// What it is about: `getppid`, `task 412`, `module dummy`, `gate 14`, `vCPU 0 CR4`.
        pub object: String => text,
        /// The kernel symbol concerned, where there is one.
        pub symbol: Option<String> => text,
        /// Where and how it shows.
        pub detail: String => text,
        /// What must be there.
        pub expected: String => text,
        /// What is there.
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
