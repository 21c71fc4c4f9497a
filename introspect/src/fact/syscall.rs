use super::cell::Named;

/// The two routes by which a kernel dispatches a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SyscallRoute {
    /// An entry of `sys_call_table`.
    Table,
    /// A call or jump in `x64_sys_call`.
    Dispatch,
}

impl SyscallRoute {
    /// The name in the column `via`: `sys_call_table` or `x64_sys_call`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Table => "sys_call_table",
            Self::Dispatch => "x64_sys_call",
        }
    }
}

fact! {
    /// The target of one system call.
    pub struct Syscall in "fact_syscall" {
        /// The route.
        pub via: SyscallRoute => text,
        /// The call's number.
        pub number: u32 => integer,
        /// The address of its target.
        pub target: u64 => address,
        /// The symbol at the target (`name`, or `name+0x…` inside one); `None` outside all symbols.
        pub symbol: Option<String> => text sought,
        /// Whether the target is in the kernel's text.
        pub in_text: bool => integer,
        /// The expected symbol: from the kernel's own syscall metadata, else from the first observation.
        pub expected: Option<String> => text,
    }
}

impl Named for SyscallRoute {
    fn name(&self) -> &'static str {
        Self::name(*self)
    }
}
