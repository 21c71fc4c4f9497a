use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer};

/// Page statistics that cost next to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// Frames of RAM.
    pub pages: u64,
    /// Frames that the source knows to be zero; `None` when it knows of none (a raw dump never does).
    pub zero_pages: Option<u64>,
    /// The other frames.
    pub data_pages: Option<u64>,
    /// Frames of kernel text; 0 when there is no Linux.
    pub kernel_text_pages: u64,
    /// Of these, how many differ from the first observation of this boot, lawful changes included.
    pub kernel_text_pages_changed: u64,
    /// Frames that this observation had to read.
    pub pages_read: u64,
    /// Frames that could not be read (damaged in the store).
    pub pages_unreadable: u64,
}

impl Fact for MemoryStatistics {
    const SCHEMA: Schema = Schema {
        table: "fact_memory",
        columns: &[
            integer("pages"),
            integer("zero_pages"),
            integer("data_pages"),
            integer("kernel_text_pages"),
            integer("kernel_text_pages_changed"),
            integer("pages_read"),
            integer("pages_unreadable"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.pages.into(),
            self.zero_pages.into(),
            self.data_pages.into(),
            self.kernel_text_pages.into(),
            self.kernel_text_pages_changed.into(),
            self.pages_read.into(),
            self.pages_unreadable.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&MemoryStatistics { zero_pages: Some(3), ..Default::default() });
    }
}
