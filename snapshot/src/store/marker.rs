use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalogue::{Catalogue, NewOperation, OperationKind, OperationStatus, Position, Rollback};
use crate::error::{Error, Result};
use crate::id::{MachineId, OperationId, TimelineId};

/// Names of marker files begin with this; the machine's number follows.
const PREFIX: &str = "moving-";
/// The first byte: the machine's memory may be half written. A file with another one is ignored.
const WRITING: u8 = b'1';
/// Longest marker that is read, in bytes: with a detail that is longer, it would not have been written.
const LENGTH_MAX: u64 = 1 << 20;

/// A file that tells the next process that a machine's memory may be half written, while the catalogue does not have
/// the operation yet: a staged rollback commits it only after the guest was resumed. The file is written right before
/// the guest is paused, because a write costs a pause some 30 µs, and not synced: what a killed process wrote stays,
/// and a power cut ends the guest as well.
pub(crate) struct Marker {
    path: PathBuf,
}

/// The content of a marker, as JSON after the first byte.
#[derive(Serialize, Deserialize)]
struct MarkerContent {
    machine: MachineId,
    kind: OperationKind,
    before: Option<Position>,
    target: Position,
    timeline: Option<TimelineId>,
    undoes: Option<OperationId>,
    detail: serde_json::Value,
    /// The newest operation when the marker was written: a later one that moved the machine replaces this one.
    newest: i64,
    /// The process that is moved; empty when it is not named.
    #[serde(default)]
    process: String,
}

impl Marker {
    /// Writes the marker. `dir` is the store's.
    pub(crate) fn set(
        dir: &Path,
        catalogue: &Catalogue,
        machine: MachineId,
        before: Option<Position>,
        to: &Rollback,
    ) -> Result<Self> {
        let path = dir.join(format!("{PREFIX}{machine}"));
        let newest = catalogue.operations(machine)?.last().map_or(0, |operation| operation.id.0);
        let content = MarkerContent {
            machine,
            kind: to.kind.into(),
            before,
            target: to.target,
            timeline: to.timeline,
            undoes: to.undoes,
            detail: to.detail.clone(),
            newest,
            process: to.process.clone(),
        };
        let mut bytes = vec![WRITING];
        serde_json::to_writer(&mut bytes, &content)
            .map_err(|e| Error::Invalid { what: "detail", why: e.to_string() })?;
        if bytes.len() as u64 > LENGTH_MAX {
            return Err(Error::Invalid { what: "detail", why: "is longer than 1 MiB".to_owned() });
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).map_err(Error::io("creating", &path))?;
        // A marker that is cut off is ignored.
        file.write_all(&bytes).map_err(Error::io("writing", &path))?;
        Ok(Self { path })
    }

    /// Removes it: the catalogue has the operation, or the rollback was reverted.
    pub(crate) fn end(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the marker of a rollback could not be removed");
        }
    }
}

/// Turns markers that a killed process left behind into operations that are started.
pub(crate) fn recover(dir: &Path, catalogue: &Catalogue) -> Result<()> {
    let list = std::fs::read_dir(dir).map_err(Error::io("listing", dir))?;
    for entry in list.flatten() {
        let is_marker = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_marker {
            continue;
        }
        let path = entry.path();
        if let Some(content) = read(&path)? {
            let moved_since = catalogue
                .operations(content.machine)?
                .iter()
                .any(|operation| operation.kind.moves() && operation.id.0 > content.newest);
            if !moved_since {
                catalogue.begin(&NewOperation {
                    machine: content.machine,
                    kind: content.kind,
                    status: OperationStatus::Started,
                    before: content.before,
                    after: Some(content.target),
                    undoes: content.undoes,
                    detail: &content.detail,
                    half_written: Some(&content.process),
                })?;
            }
        }
        std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
    }
    Ok(())
}

/// The content of a marker, unless it is to be ignored.
fn read(path: &Path) -> Result<Option<MarkerContent>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LENGTH_MAX + 1).read_to_end(&mut bytes))
        .map_err(Error::io("reading", path))?;
    let Some((&WRITING, json)) = bytes.split_first() else { return Ok(None) };
    match serde_json::from_slice(json) {
        Ok(content) => Ok(Some(content)),
        Err(error) => {
            // Only a power cut tears a file that small, and that ended the guest.
            tracing::warn!(path = %path.display(), %error, "the marker of a rollback cannot be read");
            Ok(None)
        }
    }
}
