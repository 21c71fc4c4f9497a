//! Branches: machines that started from a checkpoint of another one.

use retrovisor_guest::MachineIdentity;
use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::{Value, json};

use super::abort::Abort;
use super::checkpoint;
use super::connection::{Catalogue, Durability};
use super::machine::{self, MachineRecord};
use super::operation::{self, NewOperation, OperationKind, OperationStatus};
use super::position::Position;
use crate::clock;
use crate::error::Result;
use crate::id::{CheckpointId, MachineId, OperationId};

/// A branch that has no checkpoint of its own yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branching {
    /// The operation, which is started. As long as it is, its origin is not pruned.
    pub(crate) operation: OperationId,
    /// The checkpoint of the other machine.
    pub(crate) origin: CheckpointId,
}

/// The origin of a branch, with the names of that time: it may have been removed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchOrigin {
    /// The other machine.
    pub machine: String,
    /// The short id of its checkpoint.
    pub checkpoint: String,
    /// The checkpoint's number among that machine's.
    pub sequence: u64,
}

/// Machines that were added as branches and have no checkpoint yet.
const INCOMPLETE: &str = "SELECT o.machine FROM operation o WHERE o.kind = 'branch' AND o.status = 'started'
    AND NOT EXISTS (SELECT 1 FROM checkpoint c WHERE c.machine = o.machine)";

impl Catalogue {
    /// Adds a machine that will start from a checkpoint of another one. Until its first checkpoint is committed, it is
    /// incomplete, and [`Catalogue::remove_incomplete_branches`] removes it.
    pub(crate) fn begin_branch(
        &self,
        identity: &MachineIdentity,
        runtime: &str,
        origin: CheckpointId,
        detail: &Value,
    ) -> Result<(MachineId, Branching)> {
        self.write("beginning a branch", Durability::Full, |transaction| {
            let record = checkpoint::one(transaction, origin)?;
            let from = machine::one(transaction, "id = ?1", record.machine.0, &record.machine.to_string())?;
            let machine = machine::insert(transaction, identity, clock::now_ms())?;
            transaction
                .execute("UPDATE machine SET runtime = ?2 WHERE id = ?1", params![machine.0, runtime])?;
            let mut detail = if detail.is_object() { detail.clone() } else { json!({}) };
            detail["from"] =
                json!({ "machine": from.name, "checkpoint": record.name, "sequence": record.sequence });
            let operation = operation::insert(
                transaction,
                &NewOperation {
                    machine,
                    kind: OperationKind::Branch,
                    status: OperationStatus::Started,
                    before: Some(Position { timeline: record.timeline, checkpoint: origin }),
                    after: None,
                    undoes: None,
                    detail: &detail,
                    half_written: None,
                },
            )?;
            Ok((machine, Branching { operation, origin }))
        })
    }

    /// Removes a branch that is incomplete.
    pub(crate) fn forget_branch(&self, machine: MachineId) -> Result<()> {
        self.write("removing an incomplete branch", Durability::Full, |transaction| {
            let is_incomplete = format!("SELECT EXISTS (SELECT 1 FROM ({INCOMPLETE}) WHERE machine = ?1)");
            if transaction.query_row(&is_incomplete, [machine.0], |row| row.get(0))? {
                forget(transaction, machine.0)?;
            }
            Ok(())
        })
    }

    /// Removes all incomplete branches, which a process that ended was making, and returns them. Must not be called
    /// while branches are being made.
    pub fn remove_incomplete_branches(&self) -> Result<Vec<MachineRecord>> {
        self.write("removing incomplete branches", Durability::Full, |transaction| {
            let incomplete: Vec<i64> = transaction
                .prepare(INCOMPLETE)?
                .query_map([], |row| row.get(0))?
                .collect::<std::result::Result<_, _>>()?;
            let mut records = Vec::new();
            for machine in incomplete {
                records.push(machine::one(transaction, "id = ?1", machine, &machine.to_string())?);
                forget(transaction, machine)?;
            }
            Ok(records)
        })
    }

    /// The origin of a branch; none for other machines.
    pub fn branched_from(&self, machine: MachineId) -> Result<Option<BranchOrigin>> {
        self.read("looking where a machine branched off", |reader| {
            let found = reader
                .prepare_cached(
                    "SELECT detail ->> '$.from.machine', detail ->> '$.from.checkpoint', detail ->> '$.from.sequence'
                     FROM operation WHERE machine = ?1 AND kind = 'branch' AND status = 'done' ORDER BY id LIMIT 1",
                )?
                .query_row([machine.0], |row| {
                    Ok(row.get::<_, Option<String>>(0)?.zip(row.get::<_, Option<String>>(1)?).zip(row.get(2)?))
                })
                .optional()?;
            Ok(found.flatten().map(|((machine, checkpoint), sequence)| BranchOrigin {
                machine,
                checkpoint,
                sequence,
            }))
        })
    }
}

/// The branch has its first checkpoint: it is complete.
pub(super) fn end(transaction: &Transaction<'_>, branch: Branching, first: Position) -> Result<(), Abort> {
    transaction
        .prepare_cached("UPDATE operation SET status = ?2, after = ?3, after_timeline = ?4 WHERE id = ?1")?
        .execute(params![
            branch.operation.0,
            OperationStatus::Done.to_string(),
            first.checkpoint.0,
            first.timeline.0
        ])?;
    Ok(())
}

fn forget(transaction: &Transaction<'_>, machine: i64) -> rusqlite::Result<()> {
    for table in ["operation", "disk", "event"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE machine = ?1"), [machine])?;
    }
    transaction.execute("DELETE FROM machine WHERE id = ?1", [machine])?;
    Ok(())
}
