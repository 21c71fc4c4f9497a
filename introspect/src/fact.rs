//! Facts: what is read from a guest. The file of each kind declares its table and the questions that it answers.
//!
//! `docs/introspection.md` describes how to add one.

pub(crate) mod cell;

/// Declares a kind of fact: a struct, its table, and the questions that `inspect` answers from the table.
///
/// `table` is the name in the snapshot database. Each field becomes a column of the same name; behind `=>` is the
/// encoding, one of the modules of [`cell`]: `integer`, `bits`, `address` or `text`, and, where values are not kept as
/// stable ones, how they are: `volatile` or `sought` ([`retrovisor_guest::fact::Keeping`]). The doc comments become
/// the documentation of table and columns. `?1` in a question's SQL is the checkpoint.
macro_rules! fact {
    (@keeping) => { retrovisor_guest::fact::Keeping::Stable };
    (@keeping sought) => { retrovisor_guest::fact::Keeping::Sought };
    (@keeping volatile) => { retrovisor_guest::fact::Keeping::Volatile };
    (
        $(#[doc = $doc:literal])*
        $(#[derive($derive:ident)])?
        pub struct $Fact:ident in $table:literal {
            $(
                $(#[doc = $field_doc:literal])*
                pub $field:ident: $type:ty => $cell:ident $($keeping:ident)?,
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
                            keeping: fact!(@keeping $($keeping)?),
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

pub use bpf::BpfProgram;
pub use counter::Counter;
pub use gate::Gate;
pub use hook::{Hook, HookKind};
pub use integrity::{Violation, ViolationKind};
pub use kernel::KernelFact;
pub use log::LogLine;
pub use memory::MemoryStatistics;
pub use module::Module;
pub use mount::Mount;
pub use open_file::OpenFile;
pub use parameter::Parameter;
pub use processor::Processor;
pub use socket::Socket;
pub use syscall::{Syscall, SyscallRoute};
pub use task::Task;

use retrovisor_guest::fact::{Schema, Table, Value};

use crate::question::Question;

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

/// The table of facts of one kind.
pub(crate) fn table<'f, F: Fact + 'f>(facts: impl IntoIterator<Item = &'f F>) -> Table {
    Table { schema: &const { F::KIND.schema }, rows: facts.into_iter().map(Fact::row).collect() }
}
