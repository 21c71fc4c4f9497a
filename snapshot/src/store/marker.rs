use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalogue::{Catalogue, Move, NewOperation, OperationKind, OperationStatus, Position};
use crate::error::{Error, Result};
use crate::id::{MachineId, OperationId, TimelineId};

/// Names of marker files begin with this; the machine's number follows.
const PREFIX: &str = "moving-";
/// The first byte: the machine's memory may be half written. Another one says nothing.
const WRITING: u8 = b'1';
/// Longest marker that is read, in bytes: with a detail that is longer, it would not have been written.
const LENGTH_MAX: u64 = 1 << 20;

/// Tells the next process that a machine's memory may be half written, while the catalogue does not know of it yet:
/// a rollback that commits the present only after the guest runs on has nothing else to say so. The file is written
/// right before the guest is stopped, because a write costs a pause some 30 µs, and not synced. That is enough: what a
/// killed process wrote stays, and a power cut ends the guest as well.
pub(crate) struct Marker {
    path: PathBuf,
}

/// What a marker says, as JSON after the first byte.
#[derive(Serialize, Deserialize)]
struct Saying {
    machine: MachineId,
    kind: OperationKind,
    before: Option<Position>,
    target: Position,
    timeline: Option<TimelineId>,
    undoes: Option<OperationId>,
    detail: serde_json::Value,
    /// The newest operation when the marker was written: one that moved the machine later has ended the journey.
    newest: i64,
}

impl Marker {
    /// From now on memory may be half written. `dir`: the store's.
    pub(crate) fn set(
        dir: &Path,
        catalogue: &Catalogue,
        machine: MachineId,
        before: Option<Position>,
        to: &Move,
    ) -> Result<Self> {
        let path = dir.join(format!("{PREFIX}{machine}"));
        let newest = catalogue.operations(machine)?.last().map_or(0, |operation| operation.id.0);
        let saying = Saying {
            machine,
            kind: to.kind,
            before,
            target: to.target,
            timeline: to.timeline,
            undoes: to.undoes,
            detail: to.detail.clone(),
            newest,
        };
        let mut bytes = vec![WRITING];
        serde_json::to_writer(&mut bytes, &saying)
            .map_err(|e| Error::Invalid { what: "detail", why: e.to_string() })?;
        if bytes.len() as u64 > LENGTH_MAX {
            return Err(Error::Invalid { what: "detail", why: "is longer than 1 MiB".to_owned() });
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).map_err(Error::io("creating", &path))?;
        // One that is cut off says nothing; it is in nobody's way.
        file.write_all(&bytes).map_err(Error::io("writing", &path))?;
        Ok(Self { path })
    }

    /// The catalogue knows, or the machine stands where it stood.
    pub(crate) fn end(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the marker of a rollback could not be removed");
        }
    }
}

/// Turns markers that a killed process left behind into operations that were begun and not ended.
pub(crate) fn take_over(dir: &Path, catalogue: &Catalogue) -> Result<()> {
    let list = std::fs::read_dir(dir).map_err(Error::io("listing", dir))?;
    for entry in list.flatten() {
        let is_marker = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_marker {
            continue;
        }
        let path = entry.path();
        if let Some(saying) = read(&path)? {
            let moved_since = catalogue
                .operations(saying.machine)?
                .iter()
                .any(|operation| operation.kind.moves() && operation.id.0 > saying.newest);
            if !moved_since {
                catalogue.begin(&NewOperation {
                    machine: saying.machine,
                    kind: saying.kind,
                    status: OperationStatus::Started,
                    before: saying.before,
                    after: Some(saying.target),
                    undoes: saying.undoes,
                    detail: &saying.detail,
                })?;
            }
        }
        std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
    }
    Ok(())
}

/// What a marker says, if it says that memory may be half written.
fn read(path: &Path) -> Result<Option<Saying>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LENGTH_MAX + 1).read_to_end(&mut bytes))
        .map_err(Error::io("reading", path))?;
    let Some((&WRITING, json)) = bytes.split_first() else { return Ok(None) };
    match serde_json::from_slice(json) {
        Ok(saying) => Ok(Some(saying)),
        Err(error) => {
            // Only a power cut tears a file that small, and that ended the guest.
            tracing::warn!(path = %path.display(), %error, "the marker of a rollback cannot be read");
            Ok(None)
        }
    }
}
