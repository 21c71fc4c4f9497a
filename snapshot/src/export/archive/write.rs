use std::path::Path;

use retrovisor_guest::fact::{Kind as Cells, Value};
use retrovisor_guest::{PAGE_SIZE, Page};

use super::body::{Changes, encode_pairs, encode_state};
use super::cell::{ROWS_BYTES, Rows};
use super::record::{Kind, Writer};
use super::{ArchiveReport, Counts, Manifest};
use crate::catalogue::{Archived, SHAPES, StoredState};
use crate::content::{ContentId, ContentRef, FIRST_CONTENT};
use crate::content_list;
use crate::error::{Error, Result};
use crate::export::pages::{Progress, report};
use crate::id::{CheckpointId, MachineId};
use crate::parallel;
use crate::store::{Store, pieces};

/// Contents in a record.
const RECORD_PAGES: usize = 64;
/// Contents read at a time: 16 MiB.
const WINDOW: usize = 4096;
/// Fewest records worth a thread of their own.
const RECORDS_MIN: usize = 4;
/// Level of compression: an archive is written once and often copied.
const LEVEL: i32 = 6;
/// Places of a list of changes in a record.
const CHANGES: usize = 1 << 20;

impl Store {
    /// Writes a machine's whole history at the time of the call into one file: its checkpoints with all their rows, and
    /// every content once. Recording continues meanwhile, retention waits. Fails if anything of the machine is damaged.
    /// The file is readable by its owner only and has the guest's memory unencrypted; it must not exist before, and
    /// exists as a whole or not at all.
    pub fn export_archive(
        &self,
        machine: MachineId,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<ArchiveReport> {
        // If this store is open for reading only, another process may prune it meanwhile: then a hash or a content is
        // wrong.
        let _alone = if self.must_be_writable().is_ok() { Some(self.maintain()?) } else { None };
        self.catalogue().archived(machine, |archived| {
            let machine = archived.machine()?;
            let Some(position) = machine.position else {
                let why = format!("{} has no checkpoint yet", machine.name);
                return Err(Error::Invalid { what: "archive", why });
            };
            let links = archived.links()?;
            let contents = self.referred(archived)?;
            let manifest = Manifest {
                identity: machine.identity,
                created_at_ms: machine.created_at_ms,
                timeline: position.timeline.0,
                checkpoint: position.checkpoint.0,
                checkpoints: links.len() as u64,
                contents: contents.len() as u64,
            };
            let mut writer = Writer::begin(path)?;
            let manifest = serde_json::to_vec(&manifest)
                .map_err(|error| Error::Invalid { what: "machine identity", why: error.to_string() })?;
            writer.put(Kind::Manifest, &manifest)?;
            self.write_contents(&mut writer, &contents, progress)?;
            let mut counts = Counts {
                contents: contents.len() as u64,
                checkpoints: links.len() as u64,
                ..Counts::default()
            };
            write_tables(&mut writer, archived, &mut counts)?;
            writer.put(Kind::Origins, &encode_pairs(&archived.origins()?))?;
            let mut disks = archived.disk_links()?.into_iter().peekable();
            for link in &links {
                let (checkpoint, changes) = (link.checkpoint, self.changes(link)?);
                let changes = changes.iter().map(|(gfn, content)| (gfn.0, *content));
                write_changes(&mut writer, &contents, (checkpoint, 0), changes)?;
                while let Some(disk) = disks.next_if(|disk| disk.checkpoint == checkpoint) {
                    let changes = self.block_changes(&disk)?.into_iter();
                    write_changes(&mut writer, &contents, (checkpoint, disk.disk.0), changes)?;
                    counts.disks += 1;
                }
                let mut state = self.stored_state(checkpoint)?;
                renumber(&contents, checkpoint, &mut state)?;
                writer.put(Kind::State, &encode_state(checkpoint.0, &state))?;
            }
            write_facts(&mut writer, archived, &mut counts)?;
            writer.put(Kind::End, &counts.encode())?;
            let length_bytes = writer.finish()?;
            Ok(ArchiveReport {
                machine: machine.name,
                checkpoints: counts.checkpoints,
                contents: counts.contents,
                rows: counts.rows,
                length_bytes,
            })
        })
    }

    /// Every content that the machine's history refers to, ascending. A content's place here makes its number in the
    /// archive.
    fn referred(&self, archived: &Archived<'_>) -> Result<Vec<ContentId>> {
        let mut all: Vec<ContentId> = Vec::new();
        let mut merged = 0;
        let mut add = |part: &mut dyn Iterator<Item = ContentRef>| {
            all.extend(part.filter_map(ContentRef::stored));
            if all.len() > 2 * merged + (1 << 16) {
                all.sort_unstable();
                all.dedup();
                merged = all.len();
            }
        };
        for link in archived.links()? {
            add(&mut self.changes(&link)?.into_iter().map(|(_, content)| content));
            for section in self.stored_state(link.checkpoint)?.sections {
                let list = pieces(&section).ok_or_else(|| unreadable(link.checkpoint))?;
                add(&mut list.into_iter());
            }
        }
        for link in archived.disk_links()? {
            add(&mut self.block_changes(&link)?.into_iter().map(|(_, content)| content));
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn write_contents(
        &self,
        writer: &mut Writer,
        contents: &[ContentId],
        progress: Progress<'_>,
    ) -> Result<()> {
        let total = contents.len() as u64;
        let mut done = 0;
        for part in contents.chunks(WINDOW) {
            let mut window = vec![0; part.len() * PAGE_SIZE];
            let pages: &mut [Page] = window.as_chunks_mut().0;
            self.each_content(part, |id, page| {
                if let Ok(at) = part.binary_search(&id) {
                    pages[at] = **page;
                }
                Ok(())
            })?;
            let records: Vec<&[u8]> = window.chunks(RECORD_PAGES * PAGE_SIZE).collect();
            for record in parallel::map(&records, RECORDS_MIN, |pages| zstd::bulk::compress(pages, LEVEL)) {
                let record = record.map_err(Error::io("compressing", Path::new("contents")))?;
                writer.put(Kind::Contents, &record)?;
            }
            done += part.len() as u64;
            report(progress, done, total)?;
        }
        Ok(())
    }
}

fn write_tables(writer: &mut Writer, archived: &Archived<'_>, counts: &mut Counts) -> Result<()> {
    for shape in SHAPES {
        let columns: Vec<_> =
            shape.columns.iter().map(|(name, _)| ((*name).to_owned(), Cells::Integer)).collect();
        write_rows(writer, shape.table, &columns, counts, |each| archived.rows(shape, each))?;
    }
    Ok(())
}

fn write_facts(writer: &mut Writer, archived: &Archived<'_>, counts: &mut Counts) -> Result<()> {
    for (table, columns) in archived.fact_shapes()? {
        write_rows(writer, &table, &columns, counts, |each| archived.facts(&table, &columns, each))?;
    }
    Ok(())
}

/// Writes the rows that `read` passes, in records of bounded length. Without rows there is no record.
fn write_rows(
    writer: &mut Writer,
    table: &str,
    columns: &[(String, Cells)],
    counts: &mut Counts,
    read: impl FnOnce(&mut dyn FnMut(Vec<Value>) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let head = Rows::head(table, columns);
    let mut bytes = head.clone();
    read(&mut |row| {
        for value in &row {
            Rows::push(&mut bytes, value);
        }
        counts.rows += 1;
        if bytes.len() >= ROWS_BYTES {
            writer.put(Kind::Rows, &bytes)?;
            bytes.truncate(head.len());
        }
        Ok(())
    })?;
    if bytes.len() > head.len() { writer.put(Kind::Rows, &bytes) } else { Ok(()) }
}

/// Writes a list of changes in as many records as it needs.
fn write_changes(
    writer: &mut Writer,
    contents: &[ContentId],
    (checkpoint, disk): (CheckpointId, i64),
    changes: impl Iterator<Item = (u64, ContentRef)>,
) -> Result<()> {
    let list: Vec<_> =
        changes.map(|(place, content)| Ok((place, local(contents, content)?))).collect::<Result<_>>()?;
    let parts = list.len().div_ceil(CHANGES).max(1);
    for part in 0..parts {
        let from = part * CHANGES;
        let list = list[from..list.len().min(from + CHANGES)].to_vec();
        let more = part + 1 < parts;
        writer.put(Kind::Changes, &Changes { checkpoint: checkpoint.0, disk, more, list }.encode())?;
    }
    Ok(())
}

/// Gives a state's lists of contents the archive's numbers.
fn renumber(contents: &[ContentId], checkpoint: CheckpointId, state: &mut StoredState) -> Result<()> {
    for section in &mut state.sections {
        let list = pieces(section).ok_or_else(|| unreadable(checkpoint))?;
        let list = list.into_iter().map(|content| local(contents, content));
        section.contents = content_list::encode(list.collect::<Result<Vec<_>>>()?.into_iter());
    }
    Ok(())
}

/// A content by its number in the archive.
fn local(contents: &[ContentId], content: ContentRef) -> Result<ContentRef> {
    let Some(id) = content.stored() else { return Ok(content) };
    let at = contents.binary_search(&id).map_err(|_| Error::Invalid {
        what: "archive",
        why: "the machine's history changed while it was read; try again".into(),
    })?;
    Ok(ContentRef::Stored(ContentId(at as u64 + FIRST_CONTENT)))
}

fn unreadable(checkpoint: CheckpointId) -> Error {
    let what = format!("a section of checkpoint number {checkpoint} cannot be read");
    Error::Damaged(Box::new(crate::damage::Damage::catalogue(what)))
}
