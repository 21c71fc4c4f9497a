use super::cell::Named;

/// The kernel mechanism that calls a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookKind {
    /// The function tracer (`ftrace_ops_list`).
    Ftrace,
    /// A probe on an instruction (`kprobe_table`).
    Kprobe,
    /// A packet filter (`net.nf`).
    Netfilter,
}

impl HookKind {
    /// The name in the column `kind`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ftrace => "ftrace",
            Self::Kprobe => "kprobe",
            Self::Netfilter => "netfilter",
        }
    }
}

fact! {
    /// A registered hook: a function that the kernel calls on a traced function, on a probed instruction or for a
    /// packet.
    pub struct Hook in "fact_hook" {
        /// The mechanism.
        pub kind: HookKind => text,
        /// The hooked place: the traced functions, the probed instruction, or protocol and stage (`ipv4 local-in`).
        pub place: String => text,
        /// The address of the function that is called.
        pub handler: u64 => address,
        /// The symbol there: `name`, `name+0x…`, followed by `[module]` for a module's.
        pub symbol: Option<String> => text sought,
        /// `kernel`, the module's name, or null when the address is in neither.
        pub owner: Option<String> => text,
        /// Flags or priority, where known.
        pub detail: String => text,
    }
    question "hooks": "Functions registered with the tracer, kprobes and netfilter"
        titled "Hooks" from "SELECT kind, place, symbol, owner, detail FROM fact_hook WHERE checkpoint = ?1 ORDER BY kind, place";
}

impl Named for HookKind {
    fn name(&self) -> &'static str {
        Self::name(*self)
    }
}
