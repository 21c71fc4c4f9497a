use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer, text};

/// One gate of the interrupt descriptor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The interrupt's or exception's number.
    pub vector: u32,
    /// Where it leads.
    pub handler: u64,
    /// The symbol there (`name`, `name+0x…`, `name [module]`); `None` outside all symbols.
    pub symbol: Option<String>,
    /// `interrupt`, `trap`, or the type's number.
    pub kind: String,
    /// The lowest privilege that may raise it by instruction: 0 the kernel, 3 every process.
    pub dpl: u32,
    /// The stack it switches to, 0 for none.
    pub stack: u32,
    /// Whether the gate is in use.
    pub present: bool,
}

impl Fact for Gate {
    const SCHEMA: Schema = Schema {
        table: "fact_gate",
        columns: &[
            integer("vector"),
            text("handler"),
            text("symbol"),
            text("kind"),
            integer("dpl"),
            integer("stack"),
            integer("present"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.vector.into(),
            Value::address(self.handler),
            self.symbol.clone().into(),
            self.kind.clone().into(),
            self.dpl.into(),
            self.stack.into(),
            self.present.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Gate {
            vector: 14,
            handler: 1,
            symbol: Some("asm_exc_page_fault".into()),
            kind: "interrupt".into(),
            dpl: 0,
            stack: 0,
            present: true,
        });
    }
}
