//! The checkpoints of one boot of a guest's kernel, according to the facts of introspection.

use rusqlite::OptionalExtension;

use super::connection::Catalogue;
use crate::error::Result;
use crate::id::{CheckpointId, MachineId};

/// The facts that identify a boot, and the one that shows that the kernel's code was read.
const TABLES: &str = "SELECT count(*) FROM fact WHERE name IN ('fact_kernel', 'fact_memory')";

/// Checkpoints have the same boot when banner and both base addresses of their kernels are equal: the addresses are
/// random at each boot.
const FIRST: &str = "WITH last AS (
        SELECT k.banner, k.virtual_slide, k.physical_base FROM fact_kernel k
        JOIN checkpoint c ON c.id = k.checkpoint WHERE c.machine = ?1 ORDER BY c.sequence DESC LIMIT 1)
    SELECT c.id FROM checkpoint c
    JOIN fact_memory m ON m.checkpoint = c.id
    JOIN fact_kernel k ON k.checkpoint = c.id
    JOIN last ON last.banner = k.banner AND last.virtual_slide = k.virtual_slide
        AND last.physical_base = k.physical_base
    WHERE c.machine = ?1 AND m.kernel_text_pages > 0
    ORDER BY c.sequence LIMIT 1";

impl Catalogue {
    /// The oldest stored checkpoint of the boot that the newest introspected checkpoint belongs to, among those whose
    /// kernel code could be read: what later checkpoints of this boot are compared with. None when no checkpoint of
    /// the machine has such facts.
    pub fn first_checkpoint_of_boot(&self, machine: MachineId) -> Result<Option<CheckpointId>> {
        self.read("looking for the first checkpoint of a boot", |reader| {
            // The views are made when the first fact of a kind is recorded.
            if reader.query_row(TABLES, [], |row| row.get::<_, i64>(0))? < 2 {
                return Ok(None);
            }
            let first = reader.prepare_cached(FIRST)?.query_row([machine.0], |row| row.get(0)).optional()?;
            Ok(first.map(CheckpointId))
        })
    }
}
