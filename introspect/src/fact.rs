//! What is read of a guest: one file and one struct for each kind of fact, and how it becomes rows.

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
pub use processor::Processor;
pub use socket::Socket;
pub use syscall::{Syscall, SyscallRoute};
pub use task::Task;

use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};

/// A kind of fact: a struct whose fields become the columns of one table.
pub trait Fact {
    /// The table's shape.
    const SCHEMA: Schema;
    /// The cells, one a column, in the schema's order.
    fn row(&self) -> Vec<Value>;
}

/// The table of facts of one kind.
pub(crate) fn table<'f, F: Fact + 'f>(facts: impl IntoIterator<Item = &'f F>) -> Table {
    Table { schema: &const { F::SCHEMA }, rows: facts.into_iter().map(Fact::row).collect() }
}

const fn integer(name: &'static str) -> Column {
    Column { name, kind: Kind::Integer }
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

/// A cell for counts of which a hostile guest may make more than a signed number holds.
fn bits(word: u64) -> Value {
    Value::Integer(word.cast_signed())
}

/// A cell for an address, or null.
fn address(address: Option<u64>) -> Value {
    address.map_or(Value::Null, Value::address)
}

/// A fact's row must have a cell of the right kind for every column.
#[cfg(test)]
fn assert_row_fits<F: Fact>(fact: &F) {
    let row = fact.row();
    assert_eq!(row.len(), F::SCHEMA.columns.len(), "{}", F::SCHEMA.table);
    for (cell, column) in row.iter().zip(F::SCHEMA.columns) {
        let fits = match cell {
            Value::Null => true,
            Value::Integer(_) => column.kind == Kind::Integer,
            Value::Real(_) => column.kind == Kind::Real,
            Value::Text(_) => column.kind == Kind::Text,
        };
        assert!(fits, "{}.{} holds {cell:?}", F::SCHEMA.table, column.name);
    }
}
