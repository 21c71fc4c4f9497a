//! Records as messages.

use std::path::PathBuf;

use retrovisor_guest::RunState as Running;
use retrovisor_guest::fact::Value;
use retrovisor_machine::kvm::MacAddress;
use retrovisor_proto::v1::network_interface::Network as Shown;
use retrovisor_proto::v1::{
    BranchOrigin, Cause, Cell, Checkpoint, Incident, Machine, Move, NetworkInterface, Operation, Row,
    RunState, Table, Verdict, cell,
};
use retrovisor_snapshot::{
    CheckpointId, CheckpointRecord, IncidentRecord, MachineRecord, OperationRecord, Store, Verdict as Judged,
};

use serde::Deserialize;

use crate::care::{Care, CareError, Journey, Network, Spec};

pub(super) fn machine(care: &Care, record: &MachineRecord) -> Result<Machine, CareError> {
    let catalogue = care.store().catalogue();
    let present = catalogue
        .position(record.id)?
        .map(|position| catalogue.checkpoint(position.checkpoint))
        .transpose()?;
    let vitals = care.vitals(&record.name);
    let identity = &record.identity;
    let path =
        |path: Option<&PathBuf>| path.map_or_else(String::new, |path| path.to_string_lossy().into_owned());
    Ok(Machine {
        name: record.name.clone(),
        driver: identity.driver.clone(),
        accelerator: identity.accelerator.to_string(),
        driver_version: identity.version.clone(),
        run_state: match vitals.as_ref().map(|vitals| vitals.run_state) {
            Some(Running::Running) => RunState::Running,
            Some(Running::Paused) => RunState::Paused,
            Some(Running::Gone) | None => RunState::Gone,
        }
        .into(),
        vcpus: identity.vcpus,
        memory_bytes: identity.layout.bytes(),
        checkpoints: catalogue.checkpoints(record.id)?.len() as u64,
        present: present.as_ref().map(|present| present.name.clone()).unwrap_or_default(),
        verdict: verdict(present.map_or(Judged::Unknown, |present| present.verdict)).into(),
        console: path(vitals.as_ref().and_then(|vitals| vitals.console.as_ref())),
        every_ms: vitals.as_ref().map_or(0, |vitals| vitals.every_ms),
        dirty_finder: vitals.as_ref().map(|vitals| vitals.finder.clone()).unwrap_or_default(),
        confinement: vitals.as_ref().map(|vitals| vitals.confinement.clone()).unwrap_or_default(),
        console_log: path(vitals.as_ref().and_then(|vitals| vitals.console_log.as_ref())),
        interfaces: interfaces(record, vitals.as_ref().map_or(&[], |vitals| &vitals.links)),
        branched_from: catalogue.branched_from(record.id)?.map(|from| BranchOrigin {
            machine: from.machine,
            checkpoint: from.checkpoint,
            sequence: from.sequence,
        }),
    })
}

/// The network interfaces that a machine was given; what `links` does not say is down.
fn interfaces(record: &MachineRecord, links: &[bool]) -> Vec<NetworkInterface> {
    // A machine that was imported has none of ours.
    let spec = Spec::from_runtime(&record.name, &record.runtime).ok();
    let interfaces = spec.as_ref().map_or(&[][..], Spec::interfaces).iter().enumerate();
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

/// The record as a message; reasons are looked up where a verdict was given.
pub(super) fn checkpoint(store: &Store, record: &CheckpointRecord) -> Result<Checkpoint, CareError> {
    let catalogue = store.catalogue();
    let reasons = match record.verdict {
        Judged::Suspect | Judged::Bad => {
            catalogue.verdict(record.id)?.map(|verdict| verdict.reasons).unwrap_or_default()
        }
        Judged::Unknown | Judged::Good => Vec::new(),
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
    })
}

pub(super) fn operation(store: &Store, record: &OperationRecord) -> Result<Operation, CareError> {
    Ok(Operation {
        name: record.name.clone(),
        kind: record.kind.to_string(),
        at_ms: record.at_ms,
        before: name_of(store, record.before.map(|position| position.checkpoint))?,
        after: name_of(store, record.after.map(|position| position.checkpoint))?,
    })
}

pub(super) fn journey(store: &Store, journey: &Journey) -> Result<Move, CareError> {
    Ok(Move {
        operation: journey.operation.clone(),
        present: journey.present.as_ref().map(|present| checkpoint(store, present)).transpose()?,
        target: Some(checkpoint(store, &journey.target)?),
        steps: journey.steps,
        pages_written: journey.pages_written,
        rollback_us: journey.rollback_us,
        new_process: journey.new_process,
        image_matches: journey.image_matches,
    })
}

pub(super) fn incident(store: &Store, record: &IncidentRecord) -> Result<Incident, CareError> {
    // Written by us when the incident was opened; one from another version is shown without its causes.
    let detail: IncidentDetail = serde_json::from_value(record.detail.clone()).unwrap_or_default();
    let causes = detail.causes.into_iter().map(|cause| Cause {
        rank: cause.rank,
        kind: cause.kind,
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
        evidence: detail.evidence,
        chance_level: detail.chance_level,
        action: record.action.clone().unwrap_or_default(),
        opened_at_ms: record.opened_at_ms,
    })
}

/// What an incident's detail keeps of its explanation, and this interface passes on.
#[derive(Default, Deserialize)]
#[serde(default)]
struct IncidentDetail {
    causes: Vec<CauseDetail>,
    evidence: Vec<String>,
    chance_level: f64,
}

#[derive(Deserialize)]
struct CauseDetail {
    rank: u32,
    kind: String,
    object: String,
    score: f64,
    text: String,
}

pub(super) fn table(title: &str, columns: &[String], rows: &[Vec<Value>]) -> Table {
    Table {
        title: title.to_owned(),
        columns: columns.to_vec(),
        rows: rows.iter().map(|row| Row { cells: row.iter().map(cell).collect() }).collect(),
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

pub(super) fn verdict(verdict: Judged) -> Verdict {
    match verdict {
        Judged::Unknown => Verdict::Unspecified,
        Judged::Good => Verdict::Good,
        Judged::Suspect => Verdict::Suspect,
        Judged::Bad => Verdict::Bad,
    }
}

fn name_of(store: &Store, checkpoint: Option<CheckpointId>) -> Result<String, CareError> {
    let Some(id) = checkpoint else { return Ok(String::new()) };
    let catalogue = store.catalogue();
    match catalogue.checkpoint(id) {
        Ok(record) => Ok(record.name),
        // What was done goes on naming what was pruned.
        Err(error) => catalogue.pruned(id)?.map(|pruned| pruned.name).ok_or_else(|| error.into()),
    }
}
