use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer, text};

/// A loaded kernel module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its name, made printable.
    pub name: String,
    /// Where its code starts.
    pub address: u64,
    /// Bytes of all its parts, as /proc/modules counts.
    pub size_bytes: u64,
    /// `live`, `coming`, `going` or `unformed`.
    pub state: &'static str,
    /// Users, as /proc/modules counts.
    pub refcount: Option<i64>,
    /// What led to it: `list`, `kset`, `tree`, joined by `+` in this order.
    pub views: String,
}

impl Fact for Module {
    const SCHEMA: Schema = Schema {
        table: "fact_module",
        columns: &[
            text("name"),
            text("address"),
            integer("size_bytes"),
            text("state"),
            integer("refcount"),
            text("views"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.name.clone().into(),
            Value::address(self.address),
            self.size_bytes.into(),
            self.state.into(),
            self.refcount.into(),
            self.views.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Module { refcount: Some(-1), ..Default::default() });
    }
}
