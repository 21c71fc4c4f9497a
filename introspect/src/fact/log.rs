use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer, text};

/// One record of the kernel log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogLine {
    /// The record's number since boot.
    pub sequence: u64,
    /// Time since boot.
    pub time_ns: u64,
    /// Severity, 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Syslog facility; 0 is the kernel.
    pub facility: u8,
    /// The message, made printable; several lines stay one record.
    pub text: String,
}

impl Fact for LogLine {
    const SCHEMA: Schema = Schema {
        table: "fact_log",
        columns: &[
            integer("sequence"),
            integer("time_ns"),
            integer("level"),
            integer("facility"),
            text("text"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.sequence.into(),
            self.time_ns.into(),
            i64::from(self.level).into(),
            i64::from(self.facility).into(),
            self.text.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&LogLine::default());
    }
}
