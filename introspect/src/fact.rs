//! Facts: what is read from a guest. The file of each kind declares its table and the questions that it answers.
//!
//! `docs/introspection.md` describes how to add one.

mod cell;

/// Declares a kind of fact: a struct, its table, and the questions that `inspect` answers from the table.
///
/// `table` is the name in the snapshot database. Each field becomes a column of the same name; behind `=>` is the
/// encoding, one of the modules of [`cell`]: `integer`, `bits`, `address` or `text`. The doc comments become the
/// documentation of table and columns. `?1` in a question's SQL is the checkpoint.
macro_rules! fact {
    (
        $(#[doc = $doc:literal])*
        $(#[derive($derive:ident)])?
        pub struct $Fact:ident in $table:literal {
            $(
                $(#[doc = $field_doc:literal])*
                pub $field:ident: $type:ty => $cell:ident,
            )*
        }
        $(question $question:literal: $question_doc:literal titled $title:literal from $sql:literal;)*
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Eq $(, $derive)?)]
        pub struct $Fact {
            $(
                $(#[doc = $field_doc])*
                pub $field: $type,
            )*
        }

        impl $crate::fact::Fact for $Fact {
            const KIND: $crate::fact::FactKind = $crate::fact::FactKind {
                schema: retrovisor_guest::fact::Schema {
                    table: $table,
                    columns: &[$(
                        retrovisor_guest::fact::Column {
                            name: stringify!($field),
                            kind: $crate::fact::cell::$cell::KIND,
                        },
                    )*],
                },
                doc: concat!($($doc),*),
                column_docs: &[$(concat!($($field_doc),*)),*],
                questions: &[$(
                    $crate::question::Question {
                        name: $question,
                        doc: $question_doc,
                        selects: &[$crate::question::Select { title: $title, table: $table, sql: $sql }],
                    },
                )*],
            };

            fn row(&self) -> Vec<retrovisor_guest::fact::Value> {
                vec![$($crate::fact::cell::$cell::value(&self.$field)),*]
            }
        }
    };
}

mod bpf;
mod counter;
mod gate;
mod hook;
mod integrity;
mod kernel;
mod log;
mod memory;
mod module;
mod mount;
mod open_file;
mod parameter;
mod processor;
mod socket;
mod syscall;
mod task;

pub use hook::HookKind;
pub use integrity::ViolationKind;
pub use kernel::KernelFact;
pub use memory::MemoryStatistics;
pub use syscall::SyscallRoute;

use retrovisor_guest::fact::{Schema, Table, Value};

use crate::{
    linux::{counters, parameters, processors},
    probe::Probe,
    question::Question,
};

/// A kind of fact: a struct whose fields become the columns of one table.
pub trait Fact {
    /// The table and its questions.
    const KIND: FactKind;
    /// The cells, one for each column, in the schema's order.
    fn row(&self) -> Vec<Value>;
}

/// The declaration of a kind of fact.
#[derive(Clone, Copy, Debug)]
pub struct FactKind {
    /// The table's shape.
    pub schema: Schema,
    /// The documentation of the table.
    pub doc: &'static str,
    /// The documentation of each column.
    pub column_docs: &'static [&'static str],
    /// The questions that are answered from this table alone.
    pub questions: &'static [Question],
}

/// The registry: every kind of fact about a Linux guest, with the field of [`Linux`] that holds its values. A kind that
/// needs no other facts names the function that reads it; the others are read by `boot.rs`.
macro_rules! facts {
    ($(
        $(#[doc = $doc:literal])*
        $module:ident::$Fact:ident => $field:ident $(read by $reader:path)?;
    )*) => {
        $(pub use $module::$Fact;)*

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
        pub const KINDS: &[FactKind] = &[MemoryStatistics::KIND, KernelFact::KIND, $($Fact::KIND),*];
    };
}

facts! {
    /// Every process and thread, ascending by process.
    task::Task => tasks;
    /// Every module.
    module::Module => modules;
    /// Every system call in the first observation of a boot; later those whose target differs from the first.
    syscall::Syscall => syscalls;
    /// Every interrupt gate in the first observation of a boot; later those that differ from it.
    gate::Gate => gates;
    /// The registered hooks: traced functions, probes, packet filters.
    hook::Hook => hooks;
    /// The loaded eBPF programs.
    bpf::BpfProgram => bpf_programs;
    /// The kernel log's lines that earlier observations did not have.
    log::LogLine => log;
    /// The kernel's counters.
    counter::Counter => counters read by counters::read;
    /// Violated invariants. A healthy guest has none.
    integrity::Violation => integrity;
    /// Counters of each CPU.
    processor::Processor => processors read by processors::read;
    /// Every socket.
    socket::Socket => sockets;
    /// The files that processes hold open.
    open_file::OpenFile => open_files;
    /// The mounts.
    mount::Mount => mounts;
    /// The parameters on the kernel's command line.
    parameter::Parameter => parameters read by parameters::read;
}

/// The table of facts of one kind.
pub(crate) fn table<'f, F: Fact + 'f>(facts: impl IntoIterator<Item = &'f F>) -> Table {
    Table { schema: &const { F::KIND.schema }, rows: facts.into_iter().map(Fact::row).collect() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

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
