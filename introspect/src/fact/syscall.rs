use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer, text};

/// Which of the two places sends a system call on.
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

/// Where one system call leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// By which route.
    pub via: SyscallRoute,
    /// The call's number.
    pub number: u32,
    /// Where it leads.
    pub target: u64,
    /// The symbol at the target (`name`, or `name+0x…` inside one); `None` outside all symbols.
    pub symbol: Option<String>,
    /// Whether the target is in the kernel's text.
    pub in_text: bool,
    /// The symbol that must be there: what the kernel's own syscall metadata says, else the first observation.
    pub expected: Option<String>,
}

impl Fact for Syscall {
    const SCHEMA: Schema = Schema {
        table: "fact_syscall",
        columns: &[
            text("via"),
            integer("number"),
            text("target"),
            text("symbol"),
            integer("in_text"),
            text("expected"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.via.name().into(),
            self.number.into(),
            Value::address(self.target),
            self.symbol.clone().into(),
            self.in_text.into(),
            self.expected.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        let via = SyscallRoute::Dispatch;
        let expected = Some("__x64_sys_getppid".into());
        let call = Syscall { via, number: 110, target: 1, symbol: None, in_text: false, expected };
        crate::fact::assert_row_fits(&call);
    }
}
