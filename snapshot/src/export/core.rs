use std::path::Path;

use retrovisor_guest::PAGE_SIZE;

use super::notes;
use super::output::Output;
use super::pages::{ExportReport, Progress};
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

/// Bytes of an ELF64 header and of a program header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

impl Store {
    /// Writes a checkpoint as an ELF core (ELF64, x86-64): a `PT_LOAD` segment for each memory slot, by physical
    /// address, and the registers as notes, like QEMU's `dump-guest-memory`. If the guest is a Linux whose VMCOREINFO
    /// is found in memory, that becomes a note as well: crash and drgn need it. Zero pages are holes of the file. The
    /// file is accessible to its owner only; it must not exist before, and exists as a whole or not at all.
    pub fn export_elf_core(
        &self,
        checkpoint: CheckpointId,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<ExportReport> {
        let layout = self.layout_at(checkpoint)?;
        let vcpus = self.registers(checkpoint)?;
        let segments = layout.slots().len() as u64 + 1;
        let notes_at = HEADER + segments * PROGRAM_HEADER;
        let memory_at = (notes_at + notes::bytes_max(vcpus.len())).next_multiple_of(PAGE_SIZE as u64);
        let mut output = Output::begin(path)?;
        let (mut pages, mut info) = (0, None);
        self.each_page(checkpoint, progress, |gfn, page| {
            pages += 1;
            if info.is_none() {
                info = notes::vmcoreinfo(page).map(<[u8]>::to_vec);
            }
            let offset = memory_at + layout.index(gfn).unwrap_or(0) * PAGE_SIZE as u64;
            output.write_at(offset, page)
        })?;
        let notes = notes::encode(&vcpus, info.as_deref());
        let mut head = header(segments);
        head.extend(program_header(&Segment {
            kind: 4,
            offset: notes_at,
            address: 0,
            bytes: notes.len() as u64,
            align: 4,
        }));
        let mut offset = memory_at;
        for slot in layout.slots() {
            let (address, bytes) = (slot.gpa.0, slot.length_bytes);
            head.extend(program_header(&Segment {
                kind: 1,
                offset,
                address,
                bytes,
                align: PAGE_SIZE as u64,
            }));
            offset += bytes;
        }
        head.extend(notes);
        output.write_at(0, &head)?;
        let disk_bytes = output.finish(Some(offset))?;
        Ok(ExportReport { length_bytes: offset, disk_bytes, pages, vmcoreinfo: info.is_some() })
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    bytes: u64,
    align: u64,
}

fn header(segments: u64) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    // A core of x86-64.
    bytes.extend(4_u16.to_le_bytes());
    bytes.extend(62_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    for number in [0, HEADER, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    let segments = u16::try_from(segments).unwrap_or(u16::MAX);
    for number in [64, 56, segments, 0, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fn program_header(segment: &Segment) -> Vec<u8> {
    let flags = if segment.kind == 1 { 7_u32 } else { 0 };
    let mut bytes = segment.kind.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    // Virtual addresses are physical ones: readers find the guest's page tables themselves.
    let address = segment.address;
    for number in [segment.offset, address, address, segment.bytes, segment.bytes, segment.align] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}
