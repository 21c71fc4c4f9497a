use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer, text};

/// One number that the kernel keeps about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// The name as /proc/vmstat has it, or one that this crate computes (`context_switches`, `cpu_user_ns`, …).
    pub name: String,
    /// The value.
    pub value: i64,
}

impl Fact for Counter {
    const SCHEMA: Schema = Schema { table: "fact_counter", columns: &[text("name"), integer("value")] };

    fn row(&self) -> Vec<Value> {
        vec![self.name.clone().into(), self.value.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Counter { name: "pgfault".into(), value: -1 });
    }
}
