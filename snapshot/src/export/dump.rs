use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{
    Accelerator, Gfn, Gpa, MachineIdentity, MachineState, MemoryLayout, MemorySlot, PAGE_SIZE, Page,
    VcpuRegisters, is_zero,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::import_contents::ImportedContents;
use super::notes;
use super::pages::{Progress, report};
use crate::catalogue::{
    CheckpointKind, CommitBatch, Hashes, MachineRecord, NewCheckpoint, NewContents, OperationKind,
    PreparedCheckpoint, RecordedOperation,
};
use crate::clock;
use crate::content::ContentRef;
use crate::disk::block_changes_hash;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::page_map::PageMap;
use crate::store::{Store, changes_hash, keyframe, store_state};

/// Pages read and added at a time: 8 MiB.
const WINDOW: usize = 2048;
/// Most bytes of notes that are read.
const NOTES_BYTES_MAX: u64 = 16 << 20;
/// Bound on the memory that a dump may declare without containing it; four times its length, if that is more.
const EMPTY_BYTES_MAX: u64 = 1 << 30;
/// Most segments of a core.
const SEGMENTS_MAX: u64 = 4096;

/// How a dump is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DumpFormat {
    /// The byte at offset N is the one at guest-physical address N.
    Raw,
    /// An ELF core, as [`Store::export_elf_core`], `QEMU`'s `dump-guest-memory` or kdump write it.
    ElfCore,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// The machine's name.
    pub machine: String,
    /// Its checkpoints.
    pub checkpoints: u64,
    /// Contents that were not in the store yet.
    pub new_contents: u64,
    /// Bytes added to the packs.
    pub stored_bytes: u64,
    /// The newest checkpoint.
    pub newest: CheckpointId,
}

/// The place of memory in a file.
struct Segment {
    gpa: u64,
    offset: u64,
    /// Bytes in the file; the rest of `length_bytes` is zeros.
    file_bytes: u64,
    length_bytes: u64,
}

impl Store {
    /// Imports a dump of a machine's memory as a machine of one checkpoint, so that it can be inspected, compared and
    /// stored like any other. Registers come from an ELF core's notes, if there are any. Nothing is imported if this
    /// fails or is stopped. Other machines are recorded meanwhile.
    pub fn import_dump(
        &self,
        name: &str,
        path: &Path,
        format: DumpFormat,
        progress: Progress<'_>,
    ) -> Result<ImportReport> {
        let _alone = self.maintain()?;
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let metadata = file.metadata().map_err(Error::io("measuring", path))?;
        let bytes = metadata.len();
        if !metadata.is_file() || bytes < PAGE_SIZE as u64 {
            return Err(not_importable(path, "it is no file of at least one page of memory"));
        }
        let (segments, vcpus) = match format {
            DumpFormat::Raw => {
                let whole = bytes - bytes % PAGE_SIZE as u64;
                (vec![Segment { gpa: 0, offset: 0, file_bytes: whole, length_bytes: whole }], Vec::new())
            }
            DumpFormat::ElfCore => read_core(&file, bytes, path)?,
        };
        let memory = segments.iter().fold(0_u64, |all, segment| all.saturating_add(segment.length_bytes));
        if memory > EMPTY_BYTES_MAX.max(bytes.saturating_mul(4)) {
            return Err(not_importable(
                path,
                &format!("it has {bytes} bytes and speaks of {memory} bytes of memory"),
            ));
        }
        let slots = segments
            .iter()
            .map(|segment| MemorySlot { gpa: Gpa(segment.gpa), length_bytes: segment.length_bytes });
        let layout = MemoryLayout::new(slots.collect())
            .map_err(|error| not_importable(path, &format!("its memory: {error}")))?;
        let identity = MachineIdentity {
            name: name.to_owned(),
            driver: "dump".into(),
            version: serde_json::to_value(format)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            accelerator: Accelerator::None,
            vcpus: u32::try_from(vcpus.len()).unwrap_or(u32::MAX),
            layout,
        };
        self.import_pages(&identity, vcpus, &file, &segments, path, progress)
    }

    fn import_pages(
        &self,
        identity: &MachineIdentity,
        vcpus: Vec<VcpuRegisters>,
        file: &File,
        segments: &[Segment],
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<ImportReport> {
        let mut contents = ImportedContents::begin(self)?;
        let imported = self.import_memory(identity, vcpus, file, segments, path, progress, &mut contents);
        let (machine, newest, checkpoint) = match imported {
            Ok(imported) => imported,
            Err(error) => {
                contents.discard();
                return Err(error);
            }
        };
        let detail = json!({ "file": path.display().to_string(), "format": identity.version });
        self.catalogue().note_operation(machine.id, OperationKind::Import, &detail)?;
        Ok(ImportReport {
            machine: machine.name,
            checkpoints: 1,
            new_contents: checkpoint.new_pages,
            stored_bytes: checkpoint.stored_bytes,
            newest,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a step of one function, with its variables")]
    fn import_memory(
        &self,
        identity: &MachineIdentity,
        vcpus: Vec<VcpuRegisters>,
        file: &File,
        segments: &[Segment],
        path: &Path,
        progress: Progress<'_>,
        contents: &mut ImportedContents<'_>,
    ) -> Result<(MachineRecord, CheckpointId, NewCheckpoint)> {
        let (layout, catalogue) = (&identity.layout, self.catalogue());
        let total = layout.pages();
        let mut map = PageMap::zero(usize::try_from(total).unwrap_or(usize::MAX));
        let mut index = 0_usize;
        let mut window = vec![0; WINDOW * PAGE_SIZE];
        for segment in segments {
            let mut at = 0;
            while at < segment.file_bytes.min(segment.length_bytes) {
                let length = (segment.length_bytes - at).min(window.len() as u64);
                let there = segment.file_bytes.saturating_sub(at).min(length);
                let whole = usize::try_from(length).unwrap_or(0);
                let (data, zeros) = window[..whole].split_at_mut(usize::try_from(there).unwrap_or(0));
                read(file, data, segment.offset + at, path)?;
                zeros.fill(0);
                let pages = window[..whole].as_chunks::<PAGE_SIZE>().0;
                let filled: Vec<(usize, &Page)> =
                    pages.iter().enumerate().filter(|(_, page)| !is_zero(page)).collect();
                let data: Vec<&Page> = filled.iter().map(|(_, page)| *page).collect();
                for ((place, _), content) in filled.iter().zip(contents.add(&data)?) {
                    map.set(index + place, content);
                }
                index += pages.len();
                at += length;
                report(progress, index as u64, total)?;
            }
            // What is not in the file is zero.
            let rest = segment.length_bytes.saturating_sub(at) / PAGE_SIZE as u64;
            index += usize::try_from(rest).unwrap_or(0);
        }
        let state = MachineState { vcpus, sections: Vec::new(), disks: Vec::new() };
        let state = store_state(&self.key, &state, |pages| contents.add(pages))?;
        // Only now is it certain that there is something to add.
        let machine = catalogue.add_machine(identity)?;
        let changes = written(&map, layout);
        let checkpoint = NewCheckpoint {
            machine: machine.id,
            label: None,
            kind: CheckpointKind::Manual,
            taken_at_ms: clock::now_ms(),
            pause_us: 0,
            dirty_pages: total,
            changed_pages: changes.len() as u64,
            new_pages: contents.new_contents(),
            zero_pages: total - changes.len() as u64,
            stored_bytes: contents.stored_bytes(),
            keyframe_distance: 0,
            keyframe_rows: 0,
        };
        let full = keyframe(&self.key, &map)?;
        let prepared = PreparedCheckpoint {
            checkpoint: &checkpoint,
            changes: &changes,
            keyframe: Some(&full),
            state: &state,
            disks: Vec::new(),
            operation: RecordedOperation::None,
        };
        let batch = CommitBatch {
            contents: NewContents { frames: &[], contents: &[], packs: &[] },
            checkpoints: vec![prepared],
            branch: None,
        };
        let hashes = Hashes {
            changes: &|parent, changes| changes_hash(&self.key, parent, changes),
            blocks: &|parent, disk, changes| block_changes_hash(&self.key, parent, disk, changes),
        };
        let committed = {
            let _long = catalogue.exclude_long_writes();
            catalogue.commit(None, &batch, &hashes)
        };
        let committed = committed.inspect_err(|_| {
            if let Err(error) = catalogue.remove_empty_machine(machine.id) {
                tracing::warn!(%error, "a machine that was not imported could not be removed");
            }
        })?;
        let newest = committed.first().map_or(CheckpointId(0), |committed| committed.position.checkpoint);
        self.keep_map(newest, Arc::new(map));
        Ok((machine, newest, checkpoint))
    }
}

/// The frames that are not zero.
fn written(map: &PageMap, layout: &MemoryLayout) -> Vec<(Gfn, ContentRef)> {
    let contents = map.iter().enumerate().filter(|(_, content)| *content != ContentRef::Zero);
    contents.filter_map(|(at, content)| Some((layout.gfn(at as u64)?, content))).collect()
}

/// Fills `into`.
fn read(file: &File, into: &mut [u8], offset: u64, path: &Path) -> Result<()> {
    file.read_exact_at(into, offset).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            not_importable(path, "it ends before its memory does")
        } else {
            Error::io("reading", path)(error)
        }
    })
}

/// The file cannot be imported.
pub(super) fn not_importable(path: &Path, what: &str) -> Error {
    Error::NotReadable { path: path.to_owned(), what: what.to_owned() }
}

/// Reads the places of memory in an ELF core, and the registers.
fn read_core(file: &File, bytes: u64, path: &Path) -> Result<(Vec<Segment>, Vec<VcpuRegisters>)> {
    let at = |offset: u64, length: usize| -> Result<Vec<u8>> {
        let mut part = vec![0; length];
        file.read_exact_at(&mut part, offset)
            .map_err(|_| not_importable(path, "it ends within its headers"))?;
        Ok(part)
    };
    let header = at(0, 64)?;
    if &header[..4] != b"\x7fELF" {
        return Err(not_importable(path, "it is no ELF file; a raw dump is imported with the format raw"));
    }
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    if header[4..6] != [2, 1] || half(&header, 16) != 4 || half(&header, 18) != 62 {
        return Err(not_importable(path, "it is no ELF core of an x86-64 machine"));
    }
    let (programs_at, sections_at) = (word(&header, 32), word(&header, 40));
    let mut count = u64::from(half(&header, 56));
    if count == 0xffff {
        // More segments than the field can count: the first section has their number.
        count = u64::from(u32::from_le_bytes(at(sections_at, 64)?[44..48].try_into().unwrap_or_default()));
    }
    if half(&header, 54) != 56 || count == 0 || count > SEGMENTS_MAX {
        return Err(not_importable(path, "its program headers are not those of a core"));
    }
    let (mut segments, mut vcpus) = (Vec::new(), Vec::new());
    for number in 0..count {
        let offset =
            programs_at.checked_add(number * 56).ok_or_else(|| not_importable(path, "its headers"))?;
        let program = at(offset, 56)?;
        let (offset, gpa) = (word(&program, 8), word(&program, 24));
        let (file_bytes, length_bytes) = (word(&program, 32), word(&program, 40));
        if offset.checked_add(file_bytes).is_none_or(|end| end > bytes) {
            return Err(not_importable(path, "it is cut short: a segment goes past its end"));
        }
        match u32::from_le_bytes([program[0], program[1], program[2], program[3]]) {
            4 => {
                let length = file_bytes.min(NOTES_BYTES_MAX);
                vcpus = registers(&at(offset, usize::try_from(length).unwrap_or(0))?);
            }
            1 if length_bytes > 0 => segments.push(Segment { gpa, offset, file_bytes, length_bytes }),
            _ => (),
        }
    }
    Ok((in_order(segments), vcpus))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Ascending, whole pages, no overlaps: a kernel's dump has its text a second time at the kernel's addresses.
fn in_order(mut segments: Vec<Segment>) -> Vec<Segment> {
    const PAGE: u64 = PAGE_SIZE as u64;
    segments.sort_by_key(|segment| (segment.gpa, std::cmp::Reverse(segment.length_bytes)));
    let mut kept: Vec<Segment> = Vec::new();
    for segment in segments {
        let end = kept.last().map_or(0, |last| last.gpa + last.length_bytes);
        let first = segment.gpa.max(end).next_multiple_of(PAGE);
        let Some(last) = segment.gpa.checked_add(segment.length_bytes) else { continue };
        let last = last - last % PAGE;
        if first < last {
            let skipped = first - segment.gpa;
            kept.push(Segment {
                gpa: first,
                offset: segment.offset + skipped.min(segment.file_bytes),
                file_bytes: segment.file_bytes.saturating_sub(skipped).min(last - first),
                length_bytes: last - first,
            });
        }
    }
    kept
}

/// The vCPUs' registers: QEMU's notes have more registers than those of Linux.
fn registers(bytes: &[u8]) -> Vec<VcpuRegisters> {
    let found = notes::decode(bytes);
    let qemu: Vec<_> = found
        .iter()
        .filter(|note| note.name == b"QEMU")
        .filter_map(|note| notes::from_qemu(note.bytes))
        .collect();
    if !qemu.is_empty() {
        return qemu;
    }
    let linux = found.iter().filter(|note| note.name == b"CORE" && note.kind == 1);
    linux.filter_map(|note| notes::from_prstatus(note.bytes)).collect()
}
