use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, text};

/// Through which of the kernel's own mechanisms a function is called.
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

/// A function that asked to be called: by the tracer, at an instruction, for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// By which mechanism.
    pub kind: HookKind,
    /// Where: the traced functions, the probed instruction, `ipv4 local-in`.
    pub place: String,
    /// What is called.
    pub handler: u64,
    /// The symbol there: `name`, `name+0x…`, with `[module]` behind it for a module's.
    pub symbol: Option<String>,
    /// `kernel`, the module's name, or null when it is in neither.
    pub owner: Option<String>,
    /// Flags or priority, as far as known.
    pub detail: String,
}

impl Fact for Hook {
    const SCHEMA: Schema = Schema {
        table: "fact_hook",
        columns: &[
            text("kind"),
            text("place"),
            text("handler"),
            text("symbol"),
            text("owner"),
            text("detail"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.kind.name().into(),
            self.place.clone().into(),
            Value::address(self.handler),
            self.symbol.clone().into(),
            self.owner.clone().into(),
            self.detail.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Hook {
            kind: HookKind::Netfilter,
            place: "ipv4 local-in".into(),
            handler: 1,
            symbol: None,
            owner: None,
            detail: String::new(),
        });
    }
}
