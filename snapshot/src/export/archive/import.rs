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
    MachineImport, NewOperation, OperationKind, OperationStatus, Position, Role, Space, StoredState,
};
use crate::content::{ContentRef, FIRST_CONTENT};
use crate::content_list;
use crate::disk::DiskRecord;
use crate::error::{Error, Result};
use crate::export::dump::{ImportReport, not_importable};
use crate::export::import_contents::ImportedContents;
use crate::export::pages::{Progress, report};
use crate::id::{CheckpointId, DiskId};
use crate::store::{Store, pieces, state_hash};

/// Most contents in a record.
const RECORD_PAGES_MAX: usize = 64;
/// Bytes of contents added at a time, in which the content writer is held.
const BATCH_BYTES: usize = 8 << 20;
/// Bound on the memory of a machine: 1 TiB. A map of this size is allocated before the data are read.
const MEMORY_PAGES_MAX: u64 = 1 << 28;
/// Most fact tables of an archive.
const FACT_TABLES_MAX: usize = 1000;
/// Most sections of a state.
const SECTIONS_MAX: usize = 4096;

impl Store {
    /// Imports a machine from an archive, under its own name or another: all of it, or nothing. Its contents are added
    /// like those of any checkpoint, so none is stored twice. Short ids are kept unless they are taken; numbers are
    /// new. The whole file is checked before anything of it is added. Other machines are recorded meanwhile.
    pub fn import_archive(
        &self,
        name: Option<&str>,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<ImportReport> {
        let _alone = self.maintain()?;
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let (mut manifest, chain) = check(&file, path)?;
        let original = std::mem::take(&mut manifest.identity.name);
        name.unwrap_or(&original).clone_into(&mut manifest.identity.name);
        match self.catalogue().machine(&manifest.identity.name) {
            Err(Error::NotFound { .. }) => (),
            Err(other) => return Err(other),
            Ok(there) => return Err(Error::Exists { what: "machine", name: there.name }),
        }
        let mut contents = ImportedContents::begin(self)?;
        let imported = (|| {
            let mut reader = Reader::begin(&file, path)?;
            reader.next()?;
            let (codes, first) = add_contents(&mut reader, &mut contents, manifest.contents, path, progress)?;
            let (catalogue, identity) = (self.catalogue(), &manifest.identity);
            catalogue.import_machine(path, identity, manifest.created_at_ms, |import| {
                let mut importer = Importer::new(self, import, &manifest, codes);
                importer.take(&mut reader, first)?;
                if reader.chain() != chain {
                    return Err(not_importable(path, "it changed while it was read"));
                }
                let detail = json!({
                    "file": path.display().to_string(), "format": "archive", "machine": original,
                });
                Ok((importer.set_position(&detail)?, importer.checkpoints.len() as u64))
            })
        })();
        match imported {
            Ok((position, checkpoints)) => Ok(ImportReport {
                machine: manifest.identity.name,
                checkpoints,
                new_contents: contents.new_contents(),
                stored_bytes: contents.stored_bytes(),
                newest: position.checkpoint,
            }),
            Err(error) => {
                contents.discard();
                Err(error)
            }
        }
    }
}

/// Adds the archive's contents. Returns the content in this store of each, by its number in the archive, and the
/// record after them.
#[expect(clippy::type_complexity, reason = "a list, and a record")]
fn add_contents(
    reader: &mut Reader<'_>,
    contents: &mut ImportedContents<'_>,
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
            batch.extend(pages.ok_or_else(|| not_importable(path, "contents in it cannot be decompressed"))?);
        }
        if batch.len() >= BATCH_BYTES || kind != Kind::Contents {
            let pages: Vec<&Page> = batch.as_chunks::<PAGE_SIZE>().0.iter().collect();
            if pages.iter().any(|page| is_zero(page)) {
                return Err(not_importable(path, "a content in it is zero, which is no content"));
            }
            codes.extend(contents.add(&pages)?);
            batch.clear();
            report(progress, codes.len() as u64, total)?;
        }
        if kind != Kind::Contents {
            return Ok((codes, (kind, bytes)));
        }
    }
}

/// Reads the whole file: all hashes, and the order of its records.
fn check(file: &File, path: &Path) -> Result<(Manifest, blake3::Hash)> {
    let mut reader = Reader::begin(file, path)?;
    let (kind, bytes) = reader.next()?;
    let manifest = serde_json::from_slice::<Manifest>(&bytes).ok().filter(|_| kind == Kind::Manifest);
    let manifest = manifest.ok_or_else(|| not_importable(path, "it does not say of what machine it is"))?;
    if manifest.identity.layout.pages() > MEMORY_PAGES_MAX {
        return Err(not_importable(path, "its machine has more than 1 TiB of memory"));
    }
    let mut contents_are_over = false;
    loop {
        match reader.next()?.0 {
            Kind::Manifest => return Err(not_importable(path, "it speaks of two machines")),
            Kind::Contents if contents_are_over => {
                return Err(not_importable(path, "contents in it come after what needs them"));
            }
            Kind::Contents => (),
            Kind::End => return Ok((manifest, reader.chain())),
            _ => contents_are_over = true,
        }
    }
}

/// A machine being imported, without its contents.
struct Importer<'a, 'b> {
    store: &'a Store,
    import: &'a mut MachineImport<'b>,
    manifest: &'a Manifest,
    codes: Vec<ContentRef>,
    disks: HashMap<i64, DiskRecord>,
    fact_tables: HashSet<String>,
    /// Checkpoints whose changes, and whose states, were read.
    checkpoints: HashSet<CheckpointId>,
    states: HashSet<CheckpointId>,
    known: Known,
    /// A list of changes that is not complete yet.
    open: Option<Changes>,
    rows: u64,
    checkpoint_rows: u64,
    /// Whether the origins of timelines were read.
    has_origins: bool,
}

impl<'a, 'b> Importer<'a, 'b> {
    fn new(
        store: &'a Store,
        import: &'a mut MachineImport<'b>,
        manifest: &'a Manifest,
        codes: Vec<ContentRef>,
    ) -> Self {
        Self {
            store,
            import,
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
                        self.import.origin(timeline, checkpoint)?;
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
        let Some(shape) = MachineImport::shape(&rows.table) else {
            if self.fact_tables.len() >= FACT_TABLES_MAX {
                return Err(self.import.wrong("it has too many tables of facts"));
            }
            self.fact_tables.insert(rows.table.clone());
            self.import.fact_table(&rows.table, &columns)?;
            for row in rows.cells.chunks(columns.len() + 1) {
                self.import.fact(&rows.table, &columns, row)?;
                self.rows += 1;
            }
            return Ok(());
        };
        // An archive of version 1 does not record doubtful checkpoints: none is.
        let names = |list: &[(&'static str, Role)]| list.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        let here = names(shape.columns);
        let there: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        let is_older = shape.table == "checkpoint" && here.strip_suffix(&["doubtful"]) == Some(&there[..]);
        if here != there && !is_older {
            return Err(self.import.wrong(&format!("{} has other columns than here", rows.table)));
        }
        for row in rows.cells.chunks(columns.len()) {
            if is_older {
                self.import.row(shape, &[row, &[Value::Integer(0)]].concat())?;
            } else {
                self.import.row(shape, row)?;
            }
            self.rows += 1;
            match shape.table {
                "disk" => self.disk(row)?,
                "checkpoint" => self.checkpoint_rows += 1,
                _ => (),
            }
        }
        Ok(())
    }

    /// Records the size of a disk.
    fn disk(&mut self, row: &[Value]) -> Result<()> {
        let [Value::Integer(old), Value::Text(name), Value::Integer(size_bytes), _] = row else {
            return Err(self.unreadable("a disk"));
        };
        let record = DiskRecord {
            id: DiskId(self.import.number(Space::Disk, *old)?),
            machine: self.import.machine,
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
        let checkpoint = CheckpointId(self.import.number(Space::Checkpoint, whole.checkpoint)?);
        let list: Result<Vec<_>> =
            whole.list.iter().map(|(place, content)| Ok((*place, self.here(*content)?))).collect();
        let (list, key) = (list?, &self.store.key);
        if whole.disk != 0 {
            let disk = self.disks.get(&whole.disk).ok_or_else(|| self.unreadable("a disk's number"))?;
            if list.last().is_some_and(|(block, _)| *block >= disk.blocks()) {
                return Err(self.import.wrong("a block in it is not on its disk"));
            }
            return maps::disk(key, self.import, &mut self.known, disk, checkpoint, &list);
        }
        let layout = &self.manifest.identity.layout;
        if list.iter().any(|(gfn, _)| layout.index(retrovisor_guest::Gfn(*gfn)).is_none()) {
            return Err(self.import.wrong("a page in it is not in the machine's memory"));
        }
        if !self.checkpoints.insert(checkpoint) {
            return Err(self.import.wrong("a checkpoint in it has two lists of changes"));
        }
        maps::memory(key, self.import, layout, checkpoint, &list)
    }

    fn state(&mut self, bytes: &[u8]) -> Result<()> {
        let (checkpoint, mut state) = decode_state(bytes).ok_or_else(|| self.unreadable("a state"))?;
        let checkpoint = CheckpointId(self.import.number(Space::Checkpoint, checkpoint)?);
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
        self.import.state(checkpoint, &state)
    }

    /// The content in this store of a content of the archive.
    fn here(&self, content: ContentRef) -> Result<ContentRef> {
        let Some(id) = content.stored() else { return Ok(content) };
        let at = usize::try_from(id.0 - FIRST_CONTENT).ok();
        let found = at.and_then(|at| self.codes.get(at)).copied();
        found.ok_or_else(|| self.import.wrong("a content that it names is not in it"))
    }

    /// Checks that the import is complete, and records its facts.
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
            self.import.record_facts()
        } else {
            Err(self.import.wrong("something of it is missing"))
        }
    }

    /// Sets the machine's position, and records the import.
    fn set_position(&self, detail: &serde_json::Value) -> Result<Position> {
        let operation = NewOperation {
            machine: self.import.machine,
            kind: OperationKind::Import,
            status: OperationStatus::Done,
            before: None,
            after: None,
            undoes: None,
            detail,
            half_written: None,
        };
        self.import.set_position(self.manifest.timeline, self.manifest.checkpoint, &operation)
    }

    fn unreadable(&self, what: &str) -> Error {
        self.import.wrong(&format!("{what} cannot be read"))
    }
}
