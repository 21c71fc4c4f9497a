use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use retrovisor_guest::Page;
use retrovisor_guest::fact::Value;
use retrovisor_snapshot::{CheckpointId, Store};
use serde::{Deserialize, Serialize};

/// The contents of a fixture, as text that does not depend on the tables.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) machines: BTreeMap<String, MachineContent>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MachineContent {
    pub(super) current: String,
    pub(super) timelines: usize,
    pub(super) checkpoints: Vec<CheckpointContent>,
    /// Kind, status, short ids before and after.
    pub(super) operations: Vec<(String, String, Option<String>, Option<String>)>,
    /// Kind, first bad and last good.
    pub(super) incidents: Vec<(String, String, Option<String>)>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct CheckpointContent {
    pub(super) name: String,
    pub(super) parent: Option<String>,
    pub(super) sequence: u64,
    pub(super) label: Option<String>,
    pub(super) kind: String,
    pub(super) verdict: String,
    pub(super) image: String,
    /// Instruction pointers, and BLAKE3 of each section.
    pub(super) state: (Vec<u64>, Vec<String>),
    pub(super) facts: Vec<Vec<Value>>,
    /// Name of each disk, and BLAKE3 of its contents over a base image of zeros. None in a fixture of format 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<(String, String)>,
}

/// Facts have no order of their own.
pub(super) fn sorted(mut rows: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

/// A disk at a checkpoint, over a base image of zeros.
fn disk_hash(store: &Arc<Store>, checkpoint: CheckpointId, name: &str) -> String {
    let mut out = Cursor::new(Vec::new());
    let mut base = |_, page: &mut Page| {
        page.fill(0);
        Ok(())
    };
    store.disk(checkpoint, name).unwrap().export(&mut out, &mut base).unwrap();
    blake3::hash(&out.into_inner()).to_string()
}

/// Reads all of a store.
pub(super) fn content(store: &Arc<Store>) -> Content {
    let catalogue = store.catalogue();
    let name = |id| match catalogue.checkpoint(id) {
        Ok(record) => record.name,
        Err(_) => format!("pruned {}", catalogue.pruned(id).unwrap().unwrap().name),
    };
    let machines = catalogue.machines().unwrap().into_iter().map(|machine| {
        let checkpoints = catalogue.checkpoints(machine.id).unwrap().into_iter().map(|record| {
            let state = store.state(record.id).unwrap();
            CheckpointContent {
                parent: record.parent.map(name),
                sequence: record.sequence,
                label: record.label,
                kind: record.kind.to_string(),
                verdict: record.verdict.to_string(),
                image: store.image_hash(record.id).unwrap().to_string(),
                state: (
                    state.vcpus.iter().map(|vcpu| vcpu.rip).collect(),
                    state.sections.iter().map(|s| blake3::hash(&s.bytes).to_string()).collect(),
                ),
                facts: sorted(catalogue.facts(record.id, "fact_seen").unwrap().rows),
                disks: store
                    .disks(record.id)
                    .unwrap()
                    .into_iter()
                    .map(|disk| (disk.name.clone(), disk_hash(store, record.id, &disk.name)))
                    .collect(),
                name: record.name,
            }
        });
        let checkpoints = checkpoints.collect();
        let operations = catalogue.operations(machine.id).unwrap().into_iter().map(|operation| {
            (
                operation.kind.to_string(),
                operation.status.to_string(),
                operation.before.map(|position| name(position.checkpoint)),
                operation.after.map(|position| name(position.checkpoint)),
            )
        });
        let incidents = catalogue.incidents(machine.id).unwrap().into_iter();
        let content = MachineContent {
            current: name(machine.position.unwrap().checkpoint),
            timelines: catalogue.timelines(machine.id).unwrap().len(),
            checkpoints,
            operations: operations.collect(),
            incidents: incidents.map(|i| (i.kind, name(i.first_bad), i.last_good.map(name))).collect(),
        };
        (machine.name, content)
    });
    Content { machines: machines.collect() }
}
