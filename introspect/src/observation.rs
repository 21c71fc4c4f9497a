use retrovisor_guest::{VcpuRegisters, fact::Table};

use crate::fact::{MemoryStatistics, table};
use crate::facts::Linux;

/// What was read of a guest at one instant.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The Linux guest, if there is one.
    pub linux: Option<Linux>,
    /// Why there is none, or why only a part of it could be read.
    pub reason: Option<String>,
    /// Page statistics.
    pub memory: MemoryStatistics,
    /// The vCPUs' registers as given.
    pub registers: Vec<VcpuRegisters>,
}

impl Observation {
    /// All facts as tables, in the same order always.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![table([&self.memory])];
        tables.extend(self.linux.iter().flat_map(Linux::tables));
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::KINDS;

    #[test]
    fn a_guest_that_is_not_linux_has_its_page_statistics() {
        let observation = Observation::default();
        let names: Vec<_> = observation.tables().iter().map(|table| table.schema.table).collect();
        assert_eq!(names, ["fact_memory"]);
        let linux = Some(Linux::default());
        let tables = Observation { linux, ..Observation::default() }.tables();
        assert!(tables.iter().map(|table| table.schema).eq(KINDS.iter().map(|kind| &kind.schema)));
        assert_eq!(tables[1].rows.len(), 1);
    }
}
