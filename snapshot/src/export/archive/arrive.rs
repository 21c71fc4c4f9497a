use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use retrovisor_guest::fact::Value;
use retrovisor_guest::{DiskState, PAGE_SIZE, Page, VcpuRegisters, is_zero};
use serde_json::json;

use super::body::{Changes, decode_pairs, decode_state};
use super::cell::Rows;
use super::maps::Known;
use super::record::{Kind, Reader};
use super::{Counts, Manifest, maps};
use crate::catalogue::{
    Arrival, Commit, NewOperation, OperationKind, OperationStatus, Position, Space, StoredState,
};
use crate::content::{ContentRef, FIRST_CONTENT};
use crate::content_list;
use crate::disk::DiskRecord;
use crate::error::{Error, Result};
use crate::export::dump::{ImportReport, foreign};
use crate::export::pages::{Progress, tell};
use crate::id::{CheckpointId, DiskId};
use crate::intake::Intake;
use crate::store::{Store, pieces, state_hash};

/// Most contents in a record.
const RECORD_PAGES_MAX: usize = 64;
/// Contents taken in at a time: 8 MiB.
const BATCH_BYTES: usize = 8 << 20;
/// Most memory of a machine: 1 TiB. A map of it is taken from the file's word.
const MEMORY_PAGES_MAX: u64 = 1 << 28;
/// Most tables that facts may bring.
const FACT_TABLES_MAX: usize = 1000;
/// Most sections of a state.
const SECTIONS_MAX: usize = 4096;

impl Store {
    /// Brings a machine in from an archive, under its own name or another: all of it, or nothing. Its contents are
    /// taken in like those of any checkpoint, so that none is stored twice. Short ids stay as they are unless they are
    /// taken here; numbers are given anew. The whole file is checked before anything of it is taken in. Who records a
    /// machine of this store waits meanwhile.
    pub fn import_archive(
        &self,
        name: Option<&str>,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<ImportReport> {
        let _alone = self.maintain()?;
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let (mut manifest, whole) = check(&file, path)?;
        let original = std::mem::take(&mut manifest.identity.name);
        name.unwrap_or(&original).clone_into(&mut manifest.identity.name);
        match self.catalogue().machine(&manifest.identity.name) {
            Err(Error::NotFound { .. }) => (),
            Err(other) => return Err(other),
            Ok(there) => return Err(Error::Exists { what: "machine", name: there.name }),
        }
        let mut intake = self.intake()?;
        let brought = (|| {
            let mut reader = Reader::begin(&file, path)?;
            reader.next()?;
            let (codes, first) =
                self.take_contents(&mut reader, &mut intake, manifest.contents, path, progress)?;
            let sealed = intake.seal()?;
            let commit = Commit {
                frames: &sealed.frames,
                contents: &sealed.contents,
                packs: &sealed.packs,
                moments: Vec::new(),
                branch: None,
            };
            let identity = &manifest.identity;
            let (position, checkpoints) =
                self.catalogue().bring_in(path, identity, manifest.created_at_ms, &commit, |arrival| {
                    let mut coming = Coming::new(self, arrival, &manifest, codes);
                    coming.take(&mut reader, first)?;
                    if reader.chain() != whole {
                        return Err(foreign(path, "it changed while it was read"));
                    }
                    let detail = json!({
                        "file": path.display().to_string(), "format": "archive", "machine": original,
                    });
                    Ok((coming.stand(&detail)?, coming.checkpoints.len() as u64))
                })?;
            intake.committed(self.catalogue(), &sealed);
            Ok(ImportReport {
                machine: identity.name.clone(),
                checkpoints,
                new_contents: sealed.contents.len() as u64,
                stored_bytes: sealed.stored_bytes,
                newest: position.checkpoint,
            })
        })();
        brought.inspect_err(|_| intake.abandon())
    }

    /// Takes the contents in. Answers what each is here, by its number there, and the record after them.
    #[expect(clippy::type_complexity, reason = "a list, and a record")]
    fn take_contents(
        &self,
        reader: &mut Reader<'_>,
        intake: &mut Intake,
        total: u64,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<(Vec<ContentRef>, (Kind, Vec<u8>))> {
        let (mut codes, mut batch) = (Vec::new(), Vec::new());
        loop {
            let (kind, bytes) = reader.next()?;
            if kind == Kind::Contents {
                let pages = zstd::bulk::decompress(&bytes, RECORD_PAGES_MAX * PAGE_SIZE).ok();
                let pages = pages.filter(|pages| pages.len() % PAGE_SIZE == 0);
                batch.extend(pages.ok_or_else(|| foreign(path, "contents in it cannot be decompressed"))?);
            }
            if batch.len() >= BATCH_BYTES || kind != Kind::Contents {
                let pages: Vec<&Page> = batch.as_chunks::<PAGE_SIZE>().0.iter().collect();
                if pages.iter().any(|page| is_zero(page)) {
                    return Err(foreign(path, "a content in it is zero, which is no content"));
                }
                codes.extend(intake.add(&self.key, self.catalogue(), &pages)?);
                batch.clear();
                tell(progress, codes.len() as u64, total)?;
            }
            if kind != Kind::Contents {
                return Ok((codes, (kind, bytes)));
            }
        }
    }
}

/// Reads the whole file: all hashes, and the order of its records.
fn check(file: &File, path: &Path) -> Result<(Manifest, blake3::Hash)> {
    let mut reader = Reader::begin(file, path)?;
    let (kind, bytes) = reader.next()?;
    let manifest = serde_json::from_slice::<Manifest>(&bytes).ok().filter(|_| kind == Kind::Manifest);
    let manifest = manifest.ok_or_else(|| foreign(path, "it does not say of what machine it is"))?;
    if manifest.identity.layout.pages() > MEMORY_PAGES_MAX {
        return Err(foreign(path, "its machine has more than 1 TiB of memory"));
    }
    let mut contents_are_over = false;
    loop {
        match reader.next()?.0 {
            Kind::Manifest => return Err(foreign(path, "it speaks of two machines")),
            Kind::Contents if contents_are_over => {
                return Err(foreign(path, "contents in it come after what needs them"));
            }
            Kind::Contents => (),
            Kind::End => return Ok((manifest, reader.chain())),
            _ => contents_are_over = true,
        }
    }
}

/// A machine coming in: all but its contents.
struct Coming<'a, 'b> {
    store: &'a Store,
    arrival: &'a mut Arrival<'b>,
    manifest: &'a Manifest,
    codes: Vec<ContentRef>,
    disks: HashMap<i64, DiskRecord>,
    fact_tables: HashSet<String>,
    /// Checkpoints whose changes came, and their states.
    checkpoints: HashSet<CheckpointId>,
    states: HashSet<CheckpointId>,
    known: Known,
    /// A list of changes that is not complete yet.
    open: Option<Changes>,
    rows: u64,
    checkpoint_rows: u64,
    /// Whether it was said where timelines begin.
    has_origins: bool,
}

impl<'a, 'b> Coming<'a, 'b> {
    fn new(
        store: &'a Store,
        arrival: &'a mut Arrival<'b>,
        manifest: &'a Manifest,
        codes: Vec<ContentRef>,
    ) -> Self {
        Self {
            store,
            arrival,
            manifest,
            codes,
            disks: HashMap::new(),
            fact_tables: HashSet::new(),
            checkpoints: HashSet::new(),
            states: HashSet::new(),
            known: Known::new(),
            open: None,
            rows: 0,
            checkpoint_rows: 0,
            has_origins: false,
        }
    }

    /// Takes all records from `record` on.
    fn take(&mut self, reader: &mut Reader<'_>, mut record: (Kind, Vec<u8>)) -> Result<()> {
        loop {
            let (kind, bytes) = record;
            if self.open.is_some() && kind != Kind::Changes {
                return Err(self.unreadable("a list of changes"));
            }
            match kind {
                Kind::Rows => self.rows(&bytes)?,
                Kind::Origins if self.has_origins => return Err(self.unreadable("its order")),
                Kind::Origins => {
                    self.has_origins = true;
                    for (timeline, checkpoint) in
                        decode_pairs(&bytes).ok_or_else(|| self.unreadable("where timelines begin"))?
                    {
                        self.arrival.origin(timeline, checkpoint)?;
                    }
                }
                Kind::Changes => self.changes(&bytes)?,
                Kind::State => self.state(&bytes)?,
                Kind::End => return self.end(&bytes),
                Kind::Manifest | Kind::Contents => return Err(self.unreadable("its order")),
            }
            record = reader.next()?;
        }
    }

    fn rows(&mut self, bytes: &[u8]) -> Result<()> {
        let rows = Rows::decode(bytes).ok_or_else(|| self.unreadable("rows"))?;
        let columns: Vec<_> = rows.columns.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
        let Some(shape) = Arrival::shape(&rows.table) else {
            if self.fact_tables.len() >= FACT_TABLES_MAX {
                return Err(self.arrival.wrong("it has too many tables of facts"));
            }
            self.fact_tables.insert(rows.table.clone());
            self.arrival.fact_table(&rows.table, &columns)?;
            for row in rows.cells.chunks(columns.len() + 1) {
                self.arrival.fact(&rows.table, &columns, row)?;
                self.rows += 1;
            }
            return Ok(());
        };
        if !shape.columns.iter().map(|(name, _)| *name).eq(columns.iter().map(|(name, _)| *name)) {
            return Err(self.arrival.wrong(&format!("{} has other columns than here", rows.table)));
        }
        for row in rows.cells.chunks(columns.len()) {
            self.arrival.row(shape, row)?;
            self.rows += 1;
            match shape.table {
                "disk" => self.disk(row)?,
                "checkpoint" => self.checkpoint_rows += 1,
                _ => (),
            }
        }
        Ok(())
    }

    /// Notes how large a disk is.
    fn disk(&mut self, row: &[Value]) -> Result<()> {
        let [Value::Integer(old), Value::Text(name), Value::Integer(size_bytes), _] = row else {
            return Err(self.unreadable("a disk"));
        };
        let record = DiskRecord {
            id: DiskId(self.arrival.number(Space::Disk, *old)?),
            machine: self.arrival.machine,
            name: name.clone(),
            size_bytes: u64::try_from(*size_bytes).unwrap_or(0),
            base: None,
        };
        self.disks.insert(*old, record);
        Ok(())
    }

    fn changes(&mut self, bytes: &[u8]) -> Result<()> {
        let part = Changes::decode(bytes).ok_or_else(|| self.unreadable("a list of changes"))?;
        let whole = match self.open.take() {
            None => part,
            Some(mut open) => {
                let goes_on = (open.checkpoint, open.disk) == (part.checkpoint, part.disk)
                    && open.list.last().zip(part.list.first()).is_some_and(|(a, b)| a.0 < b.0);
                if !goes_on {
                    return Err(self.unreadable("a list of changes"));
                }
                open.list.extend(part.list);
                open.more = part.more;
                open
            }
        };
        if whole.more {
            self.open = Some(whole);
            return Ok(());
        }
        let checkpoint = CheckpointId(self.arrival.number(Space::Checkpoint, whole.checkpoint)?);
        let list: Result<Vec<_>> =
            whole.list.iter().map(|(place, content)| Ok((*place, self.here(*content)?))).collect();
        let (list, key) = (list?, &self.store.key);
        if whole.disk != 0 {
            let disk = self.disks.get(&whole.disk).ok_or_else(|| self.unreadable("a disk's number"))?;
            if list.last().is_some_and(|(block, _)| *block >= disk.blocks()) {
                return Err(self.arrival.wrong("a block in it is not on its disk"));
            }
            return maps::disk(key, self.arrival, &mut self.known, disk, checkpoint, &list);
        }
        let layout = &self.manifest.identity.layout;
        if list.iter().any(|(gfn, _)| layout.index(retrovisor_guest::Gfn(*gfn)).is_none()) {
            return Err(self.arrival.wrong("a page in it is not in the machine's memory"));
        }
        if !self.checkpoints.insert(checkpoint) {
            return Err(self.arrival.wrong("a checkpoint in it has two lists of changes"));
        }
        maps::memory(key, self.arrival, layout, checkpoint, &list)
    }

    fn state(&mut self, bytes: &[u8]) -> Result<()> {
        let (checkpoint, mut state) = decode_state(bytes).ok_or_else(|| self.unreadable("a state"))?;
        let checkpoint = CheckpointId(self.arrival.number(Space::Checkpoint, checkpoint)?);
        let is_one = serde_json::from_str::<Vec<VcpuRegisters>>(&state.vcpus).is_ok()
            && serde_json::from_str::<Vec<DiskState>>(&state.disks).is_ok();
        let is_one = is_one && state.sections.len() <= SECTIONS_MAX;
        if !is_one || !self.states.insert(checkpoint) {
            return Err(self.unreadable("a state"));
        }
        for section in &mut state.sections {
            let list = pieces(section).ok_or_else(|| self.unreadable("a state's section"))?;
            let list: Result<Vec<_>> = list.into_iter().map(|content| self.here(content)).collect();
            section.contents = content_list::encode(list?.into_iter());
        }
        let state = StoredState { hash: state_hash(&self.store.key, &state), ..state };
        self.arrival.state(checkpoint, &state)
    }

    /// What a content of the archive is here.
    fn here(&self, content: ContentRef) -> Result<ContentRef> {
        let Some(id) = content.stored() else { return Ok(content) };
        let at = usize::try_from(id.0 - FIRST_CONTENT).ok();
        let found = at.and_then(|at| self.codes.get(at)).copied();
        found.ok_or_else(|| self.arrival.wrong("a content that it names is not in it"))
    }

    /// Nothing may be missing.
    fn end(&self, bytes: &[u8]) -> Result<()> {
        let counts = Counts {
            contents: self.codes.len() as u64,
            rows: self.rows,
            checkpoints: self.checkpoint_rows,
            disks: self.known.len() as u64,
        };
        let is_whole = self.has_origins
            && self.checkpoints == self.states
            && self.checkpoints.len() as u64 == counts.checkpoints;
        if is_whole && Counts::decode(bytes) == Some(counts) {
            Ok(())
        } else {
            Err(self.arrival.wrong("something of it is missing"))
        }
    }

    /// Where the machine stands; and that it was brought here.
    fn stand(&self, detail: &serde_json::Value) -> Result<Position> {
        let operation = NewOperation {
            machine: self.arrival.machine,
            kind: OperationKind::Import,
            status: OperationStatus::Done,
            before: None,
            after: None,
            undoes: None,
            detail,
        };
        self.arrival.stand(self.manifest.timeline, self.manifest.checkpoint, &operation)
    }

    fn unreadable(&self, what: &str) -> Error {
        self.arrival.wrong(&format!("{what} cannot be read"))
    }
}
