use retrovisor_guest::{
    DiskState, MachineState, PAGE_SIZE, Page, StateSection, VcpuRegisters, ZERO_PAGE, is_zero,
};

use super::opening::Store;
use crate::catalogue::{StoredSection, StoredState};
use crate::content::ContentRef;
use crate::content_list;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::key::{Hash, Key};

/// Longest section of machine state, in bytes.
const SECTION_BYTES_MAX: u64 = 1 << 30;

impl Store {
    /// Everything of a checkpoint but memory.
    pub fn state(&self, checkpoint: CheckpointId) -> Result<MachineState> {
        let stored = self.stored_state(checkpoint)?;
        let sections = stored.sections.iter().map(|section| self.section(checkpoint, section));
        Ok(MachineState {
            vcpus: json(&stored.vcpus, "registers", checkpoint)?,
            disks: json(&stored.disks, "disks", checkpoint)?,
            sections: sections.collect::<Result<_>>()?,
        })
    }

    /// The registers at a checkpoint, without reading the driver's sections.
    pub fn registers(&self, checkpoint: CheckpointId) -> Result<Vec<VcpuRegisters>> {
        json(&self.stored_state(checkpoint)?.vcpus, "registers", checkpoint)
    }

    /// The driver's references to a checkpoint's disk contents, if it retains them.
    pub(crate) fn state_disks(&self, checkpoint: CheckpointId) -> Result<Vec<DiskState>> {
        json(&self.stored_state(checkpoint)?.disks, "disks", checkpoint)
    }

    /// The state as stored, checked.
    pub(crate) fn stored_state(&self, checkpoint: CheckpointId) -> Result<StoredState> {
        let Some(stored) = self.catalogue().stored_state(checkpoint)? else {
            self.catalogue().link(checkpoint)?;
            return Err(damaged("the machine state is missing", checkpoint));
        };
        if state_hash(&self.key, &stored) == stored.hash {
            Ok(stored)
        } else {
            Err(damaged("the machine state is not what was written", checkpoint))
        }
    }

    fn section(&self, checkpoint: CheckpointId, section: &StoredSection) -> Result<StateSection> {
        let mut bytes = Vec::new();
        for content in pieces(section).ok_or_else(|| {
            damaged(&format!("the list of contents of section {} cannot be read", section.format), checkpoint)
        })? {
            match content.stored() {
                None => bytes.extend_from_slice(&ZERO_PAGE),
                Some(id) => bytes.extend_from_slice(
                    &self.content(id).map_err(|error| match error {
                        Error::Damaged(mut damage) => {
                            damage.sections.push(format!("{checkpoint}/{}", section.format));
                            Error::Damaged(damage)
                        }
                        other => other,
                    })?[..],
                ),
            }
        }
        bytes.truncate(usize::try_from(section.length_bytes).unwrap_or(usize::MAX));
        Ok(StateSection { format: section.format.clone(), bytes })
    }
}

/// The contents of a section; `None` when its list cannot be read.
pub(crate) fn pieces(section: &StoredSection) -> Option<Vec<ContentRef>> {
    let bytes = Some(section.length_bytes).filter(|bytes| *bytes <= SECTION_BYTES_MAX)?;
    content_list::decode(&section.contents, usize::try_from(bytes).ok()?.div_ceil(PAGE_SIZE))
}

/// The sections of a state cut into pages that `add` gives names; zero ones have theirs already.
pub(crate) fn store_state(
    key: &Key,
    state: &MachineState,
    mut add: impl FnMut(&[&Page]) -> Result<Vec<ContentRef>>,
) -> Result<StoredState> {
    let mut sections = Vec::with_capacity(state.sections.len());
    for section in &state.sections {
        if section.bytes.len() as u64 > SECTION_BYTES_MAX {
            let why = format!("{} has {} bytes, more than 1 GiB", section.format, section.bytes.len());
            return Err(Error::Invalid { what: "machine state", why });
        }
        let (whole, rest) = section.bytes.as_chunks::<PAGE_SIZE>();
        let mut last = ZERO_PAGE;
        last[..rest.len()].copy_from_slice(rest);
        let pages: Vec<&Page> = whole.iter().chain((!rest.is_empty()).then_some(&last)).collect();
        let data: Vec<&Page> = pages.iter().copied().filter(|page| !is_zero(page)).collect();
        let mut names = add(&data)?.into_iter();
        let contents = pages.iter().map(|page| {
            if is_zero(page) { ContentRef::Zero } else { names.next().unwrap_or(ContentRef::Zero) }
        });
        sections.push(StoredSection {
            format: section.format.clone(),
            length_bytes: section.bytes.len() as u64,
            contents: content_list::encode(contents),
        });
    }
    let text = |what, json: serde_json::Result<String>| {
        json.map_err(|e| Error::Invalid { what, why: format!("cannot be written as JSON: {e}") })
    };
    let mut stored = StoredState {
        vcpus: text("registers", serde_json::to_string(&state.vcpus))?,
        disks: text("disks", serde_json::to_string(&state.disks))?,
        sections,
        hash: [0; 32],
    };
    stored.hash = state_hash(key, &stored);
    Ok(stored)
}

/// Over all of a state.
pub(crate) fn state_hash(key: &Key, state: &StoredState) -> Hash {
    let mut hasher = key.record("state");
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(state.vcpus.as_bytes());
    add(state.disks.as_bytes());
    for section in &state.sections {
        add(section.format.as_bytes());
        add(&section.length_bytes.to_le_bytes());
        add(&section.contents);
    }
    *hasher.finalize().as_bytes()
}

fn json<T: serde::de::DeserializeOwned>(text: &str, what: &str, checkpoint: CheckpointId) -> Result<T> {
    serde_json::from_str(text).map_err(|e| damaged(&format!("{what} cannot be read: {e}"), checkpoint))
}

fn damaged(what: &str, checkpoint: CheckpointId) -> Error {
    Error::Damaged(Box::new(Damage::catalogue(format!("{what} (checkpoint number {checkpoint})"))))
}
