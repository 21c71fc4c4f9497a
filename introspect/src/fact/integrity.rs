use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, text};

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

/// One invariant that does not hold. A healthy guest has none, ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub kind: ViolationKind,
    /// What it is about: `getppid`, `task 412`, `module dummy`, `gate 14`, `vCPU 0 CR4`.
    pub object: String,
    /// The kernel symbol concerned, where there is one.
    pub symbol: Option<String>,
    /// Where and how it shows.
    pub detail: String,
    /// What must be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Fact for Violation {
    const SCHEMA: Schema = Schema {
        table: "fact_integrity",
        columns: &[
            text("kind"),
            text("object"),
            text("symbol"),
            text("detail"),
            text("expected"),
            text("found"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.kind.name().into(),
            self.object.clone().into(),
            self.symbol.clone().into(),
            self.detail.clone().into(),
            self.expected.clone().into(),
            self.found.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Violation {
            kind: ViolationKind::Lstar,
            object: "vCPU 0 LSTAR".into(),
            symbol: None,
            detail: String::new(),
            expected: String::new(),
            found: String::new(),
        });
    }
}
