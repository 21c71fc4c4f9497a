//! Records as messages.

use std::path::PathBuf;

use retrovisor_analytics::Explanation;
use retrovisor_guest::fact::Value;
use retrovisor_guest::{GuestEvent, MacAddress, Network};
use retrovisor_manager::{Lifecycle, MachineSpec, MachineStatus, Manager, ManagerError, RollbackKind};
use retrovisor_proto::v1::network_interface::Network as Shown;
use retrovisor_proto::v1::{
    self, Audit, BranchOrigin, Cause, Cell, Checkpoint, DiskAudit, DiskAuditResult, Incident, Machine,
    MachineState, NetworkInterface, Operation, Rollback, Row, Table, Verdict, cell,
};
use retrovisor_snapshot::{
    AuditStatus, CheckpointId, CheckpointRecord, DiskAuditReport, DiskAuditStatus, IncidentRecord,
    MachineRecord, OperationRecord, Store, Verdict as StoredVerdict,
};

pub(super) fn machine(manager: &Manager, record: &MachineRecord) -> Result<Machine, ManagerError> {
    let catalogue = manager.store().catalogue();
    let current = catalogue
        .position(record.id)?
        .map(|position| catalogue.checkpoint(position.checkpoint))
        .transpose()?;
    let status = manager.status(&record.name)?;
    let identity = &record.identity;
    let dirty_finder = status.dirty_finder.as_ref();
    let path =
        |path: Option<&PathBuf>| path.map_or_else(String::new, |path| path.to_string_lossy().into_owned());
    Ok(Machine {
        name: record.name.clone(),
        driver: identity.driver.clone(),
        accelerator: identity.accelerator.to_string(),
        driver_version: identity.version.clone(),
        state: state(status.state).into(),
        vcpus: identity.vcpus,
        memory_bytes: identity.layout.bytes(),
        checkpoints: catalogue.checkpoints(record.id)?.len() as u64,
        current: current.as_ref().map(|current| current.name.clone()).unwrap_or_default(),
        verdict: verdict(current.map_or(StoredVerdict::Unknown, |current| current.verdict)).into(),
        state_reason: state_reason(&status),
        checkpoint_error: status.checkpoint_error.clone(),
        console: path(status.console.as_ref()),
        every_ms: status.every_ms,
        dirty_finder: dirty_finder.map(|finder| finder.name.to_owned()).unwrap_or_default(),
        dirty_finder_reason: dirty_finder.map(|finder| finder.reason.clone()).unwrap_or_default(),
        confinement: status.confinement.clone(),
        console_log: path(status.console_log.as_ref()),
        audit: status.audit.map(audit),
        interfaces: interfaces(record, &status.links),
        branched_from: catalogue.branched_from(record.id)?.map(|from| BranchOrigin {
            machine: from.machine,
            checkpoint: from.checkpoint,
            sequence: from.sequence,
        }),
    })
}

fn audit(status: AuditStatus) -> Audit {
    Audit {
        frames_per_checkpoint: status.frames_per_checkpoint,
        total_pages: status.pages,
        proven_pages: status.proven_pages,
        since_ms: status.since_ms,
        mismatched_pages: status.mismatches,
        last_mismatch_ms: status.last_mismatch_ms,
        disks: status.disks.into_iter().map(disk_audit).collect(),
    }
}

fn disk_audit(status: DiskAuditStatus) -> DiskAudit {
    DiskAudit {
        disk: status.disk,
        total_blocks: status.blocks,
        proven_blocks: status.proven_blocks,
        since_ms: status.since_ms,
        mismatched_blocks: status.mismatches,
        last_mismatch_ms: status.last_mismatch_ms,
    }
}

/// What an audit of a whole disk found.
pub(super) fn disk_audit_result(report: DiskAuditReport) -> DiskAuditResult {
    DiskAuditResult {
        disk: report.disk,
        total_blocks: report.blocks,
        compared_blocks: report.compared_blocks,
        mismatched_blocks: report.mismatched_blocks,
        mismatched_block_numbers: report.mismatches,
        not_compared: report.not_compared,
    }
}

/// An event of a guest.
pub(super) fn guest_event(event: &GuestEvent) -> v1::GuestEvent {
    use v1::GuestEventKind as Kind;
    let of = |kind: Kind| v1::GuestEvent { kind: kind.into(), ..v1::GuestEvent::default() };
    match event.clone() {
        GuestEvent::Shutdown { by_guest, reason } => {
            v1::GuestEvent { by_guest, reason, ..of(Kind::PoweredOff) }
        }
        GuestEvent::Reset { by_guest, reason } => v1::GuestEvent { by_guest, reason, ..of(Kind::Reset) },
        GuestEvent::Panicked => of(Kind::Panicked),
        GuestEvent::Stopped => of(Kind::Stopped),
        GuestEvent::Resumed => of(Kind::Resumed),
        GuestEvent::Watchdog => of(Kind::Watchdog),
        GuestEvent::DiskError { disk, reason, is_stopped } => {
            let kind = if is_stopped { Kind::DiskErrorStopped } else { Kind::DiskError };
            v1::GuestEvent { disk, reason, ..of(kind) }
        }
        GuestEvent::MemoryFailure => of(Kind::MemoryFailure),
    }
}

/// The state of a machine.
pub(super) fn state(state: Lifecycle) -> MachineState {
    match state {
        Lifecycle::Starting => MachineState::Starting,
        Lifecycle::Running => MachineState::Running,
        Lifecycle::Paused(_) => MachineState::Paused,
        Lifecycle::PoweredOff => MachineState::PoweredOff,
        Lifecycle::Panicked => MachineState::Panicked,
        Lifecycle::Unreachable => MachineState::Unreachable,
        Lifecycle::Failed => MachineState::Failed,
        Lifecycle::Detached => MachineState::Detached,
        Lifecycle::Gone => MachineState::Gone,
    }
}

/// Why a machine is in its state: what is known of it, or else who paused it.
fn state_reason(status: &MachineStatus) -> String {
    match status.state {
        Lifecycle::Paused(_) if status.reason.is_empty() => status.state.to_string(),
        _ => status.reason.clone(),
    }
}

/// The network interfaces of a machine; a link of which nothing is known is down.
fn interfaces(record: &MachineRecord, links: &[bool]) -> Vec<NetworkInterface> {
    // An imported machine has none.
    let spec = MachineSpec::from_runtime(&record.name, &record.runtime).ok();
    let interfaces = spec.as_ref().map_or(&[][..], MachineSpec::interfaces).iter().enumerate();
    let shown = interfaces.map(|(index, interface)| NetworkInterface {
        network: Some(match &interface.network {
            Network::Hub(name) => Shown::Hub(name.clone()),
            Network::Tap(name) => Shown::Tap(name.clone()),
        }),
        address: interface.mac.unwrap_or_else(|| MacAddress::of_machine(&record.name, index)).to_string(),
        link_up: links.get(index).copied().unwrap_or(false),
    });
    shown.collect()
}

/// The record as a message, with the reasons of its verdict.
pub(super) fn checkpoint(store: &Store, record: &CheckpointRecord) -> Result<Checkpoint, ManagerError> {
    let catalogue = store.catalogue();
    let reasons = match record.verdict {
        StoredVerdict::Suspect | StoredVerdict::Bad => {
            catalogue.verdict(record.id)?.map(|verdict| verdict.reasons).unwrap_or_default()
        }
        StoredVerdict::Unknown | StoredVerdict::Good => Vec::new(),
    };
    let machine = catalogue.machine_by_id(record.machine)?.name;
    Ok(Checkpoint {
        name: record.name.clone(),
        machine,
        sequence: record.sequence,
        timeline: record.timeline.0,
        parent: name_of(store, record.parent)?,
        label: record.label.clone().unwrap_or_default(),
        kind: record.kind.to_string(),
        taken_at_ms: record.taken_at_ms,
        pause_us: record.pause_us,
        durable_us: record.durable_us,
        dirty_pages: record.dirty_pages,
        new_pages: record.new_pages,
        stored_bytes: record.stored_bytes,
        verdict: verdict(record.verdict).into(),
        score: record.score,
        reasons,
        doubtful: record.doubtful,
    })
}

pub(super) fn operation(store: &Store, record: &OperationRecord) -> Result<Operation, ManagerError> {
    Ok(Operation {
        name: record.name.clone(),
        kind: record.kind.to_string(),
        at_ms: record.at_ms,
        before: name_of(store, record.before.map(|position| position.checkpoint))?,
        after: name_of(store, record.after.map(|position| position.checkpoint))?,
    })
}

pub(super) fn rollback(
    store: &Store,
    rollback: &retrovisor_manager::Rollback,
) -> Result<Rollback, ManagerError> {
    Ok(Rollback {
        operation: rollback.operation.clone(),
        current: rollback.current.as_ref().map(|current| checkpoint(store, current)).transpose()?,
        target: Some(checkpoint(store, &rollback.target)?),
        steps: rollback.steps,
        pages_written: rollback.pages_written,
        rollback_us: rollback.rollback_us,
        new_process: rollback.new_process,
        image_matches: rollback.image_matches,
        kind: match rollback.kind {
            RollbackKind::Rollback => v1::RollbackKind::Rollback,
            RollbackKind::Undo => v1::RollbackKind::Undo,
            RollbackKind::Redo => v1::RollbackKind::Redo,
            RollbackKind::Restore => v1::RollbackKind::Restore,
        }
        .into(),
    })
}

pub(super) fn incident(store: &Store, record: &IncidentRecord) -> Result<Incident, ManagerError> {
    // The detail of another version may be of another form: the incident is shown without its explanation then.
    let explanation = serde_json::from_value::<Explanation>(record.detail.clone()).ok();
    let chance_level = explanation.as_ref().map_or(0.0, |explanation| explanation.chance_level);
    let (causes, evidence) =
        explanation.map(|explanation| (explanation.causes, explanation.evidence)).unwrap_or_default();
    let causes = causes.into_iter().map(|cause| Cause {
        rank: u32::try_from(cause.rank).unwrap_or(u32::MAX),
        kind: cause.kind.to_string(),
        object: cause.object,
        score: cause.score,
        text: cause.text,
    });
    Ok(Incident {
        name: record.name.clone(),
        machine: store.catalogue().machine_by_id(record.machine)?.name,
        first_bad: name_of(store, Some(record.first_bad))?,
        last_good: name_of(store, record.last_good)?,
        summary: record.summary.clone(),
        causes: causes.collect(),
        evidence,
        chance_level,
        action: record.action.clone().unwrap_or_default(),
        opened_at_ms: record.opened_at_ms,
    })
}

pub(super) fn table(title: &str, columns: &[String], rows: &[Vec<Value>], truncated: bool) -> Table {
    Table {
        title: title.to_owned(),
        columns: columns.to_vec(),
        rows: rows.iter().map(|row| Row { cells: row.iter().map(cell).collect() }).collect(),
        truncated,
    }
}

pub(super) fn cell(value: &Value) -> Cell {
    let value = match value {
        Value::Null => None,
        Value::Integer(number) => Some(cell::Value::Integer(*number)),
        Value::Real(number) => Some(cell::Value::Real(*number)),
        Value::Text(text) => Some(cell::Value::Text(text.clone())),
    };
    Cell { value }
}

pub(super) fn value(cell: &Cell) -> Value {
    match &cell.value {
        None => Value::Null,
        Some(cell::Value::Integer(number)) => Value::Integer(*number),
        Some(cell::Value::Real(number)) => Value::Real(*number),
        Some(cell::Value::Text(text)) => Value::Text(text.clone()),
    }
}

pub(super) fn verdict(verdict: StoredVerdict) -> Verdict {
    match verdict {
        StoredVerdict::Unknown => Verdict::Unknown,
        StoredVerdict::Good => Verdict::Good,
        StoredVerdict::Suspect => Verdict::Suspect,
        StoredVerdict::Bad => Verdict::Bad,
    }
}

fn name_of(store: &Store, checkpoint: Option<CheckpointId>) -> Result<String, ManagerError> {
    let Some(id) = checkpoint else { return Ok(String::new()) };
    let catalogue = store.catalogue();
    match catalogue.checkpoint(id) {
        Ok(record) => Ok(record.name),
        // Operations and incidents keep the names of pruned checkpoints.
        Err(error) => catalogue.pruned(id)?.map(|pruned| pruned.name).ok_or_else(|| error.into()),
    }
}
