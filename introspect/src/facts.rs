//! All facts about a Linux guest: the registry of their kinds.

use retrovisor_guest::fact::Table;

use crate::fact::{
    BpfProgram, Counter, Fact as _, FactKind, Gate, Hook, KernelFact, LogLine, MemoryStatistics, Module,
    Mount, OpenFile, Parameter, Processor, Socket, Syscall, Task, Violation, table,
};
use crate::linux::{counters, parameters, processors};
use crate::probe::Probe;

/// The registry: every kind of fact about a Linux guest, with the field of [`Linux`] that holds its values. A kind that
/// needs no other facts names the function that reads it; the others are read by `boot.rs`.
macro_rules! facts {
    ($(
        $(#[doc = $doc:literal])*
        $Fact:ident => $field:ident $(read by $reader:path)?;
    )*) => {
        /// A Linux guest at one instant.
        #[derive(Clone, Debug, Default)]
        pub struct Linux {
            /// The kernel.
            pub kernel: KernelFact,
            $(
                $(#[doc = $doc])*
                pub $field: Vec<$Fact>,
            )*
        }

        impl Linux {
            /// Reads the facts that need no other facts.
            pub(crate) fn read_independent(&mut self, probe: &Probe) {
                $($(self.$field = $reader(probe);)?)*
            }

            /// All facts as tables, in the order of the registry.
            pub(crate) fn tables(&self) -> Vec<Table> {
                vec![table([&self.kernel]), $(table(&self.$field)),*]
            }
        }

        /// Every kind of fact, in the order of their tables.
        pub(crate) const KINDS: &[FactKind] = &[MemoryStatistics::KIND, KernelFact::KIND, $($Fact::KIND),*];
    };
}

facts! {
    /// Every process and thread, ascending by process.
    Task => tasks;
    /// Every module.
    Module => modules;
    /// Every system call in the first observation of a boot; later those whose target differs from the first.
    Syscall => syscalls;
    /// Every interrupt gate in the first observation of a boot; later those that differ from it.
    Gate => gates;
    /// The registered hooks: traced functions, probes, packet filters.
    Hook => hooks;
    /// The loaded eBPF programs.
    BpfProgram => bpf_programs;
    /// The kernel log's lines that earlier observations did not have.
    LogLine => log;
    /// The kernel's counters.
    Counter => counters read by counters::read;
    /// Violated invariants. A healthy guest has none.
    Violation => integrity;
    /// Counters of each CPU.
    Processor => processors read by processors::read;
    /// Every socket.
    Socket => sockets;
    /// The files that processes hold open.
    OpenFile => open_files;
    /// The mounts.
    Mount => mounts;
    /// The parameters on the kernel's command line.
    Parameter => parameters read by parameters::read;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fact::cell;

    #[test]
    fn tables_and_columns_have_names_of_their_own_and_are_documented() {
        let tables: BTreeSet<_> = KINDS.iter().map(|kind| kind.schema.table).collect();
        assert_eq!(tables.len(), KINDS.len());
        for kind in KINDS {
            let table = kind.schema.table;
            let columns: BTreeSet<_> = kind.schema.columns.iter().map(|column| column.name).collect();
            assert_eq!(columns.len(), kind.schema.columns.len(), "{table}");
            assert!(table.starts_with("fact_") && !kind.doc.trim().is_empty(), "{table}");
            assert_eq!(kind.column_docs.len(), columns.len(), "{table}");
            for (column, doc) in kind.schema.columns.iter().zip(kind.column_docs) {
                assert!(!doc.trim().is_empty(), "{table}.{} is not documented", column.name);
            }
        }
    }

    #[test]
    fn a_row_has_a_cell_of_the_right_kind_for_each_column() {
        let tables =
            Linux { tasks: vec![Task::default()], mounts: vec![Mount::default()], ..Linux::default() }
                .tables();
        assert_eq!(tables.len() + 1, KINDS.len());
        for table in tables {
            for row in &table.rows {
                assert_eq!(row.len(), table.schema.columns.len(), "{}", table.schema.table);
                for (value, column) in row.iter().zip(table.schema.columns) {
                    assert!(cell::fits(value, column.kind), "{}.{}", table.schema.table, column.name);
                }
            }
        }
    }
}
