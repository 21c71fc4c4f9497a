use std::collections::BTreeMap;

use crate::{btf::Field, fact::LogLine, printable::printable, probe::Probe};

/// The kernel log's lines that were seen: sequence number → time. A line with a known number but another time was
/// written on another branch of history, after a rollback.
#[derive(Default)]
pub(crate) struct SeenLines {
    times: BTreeMap<u64, u64>,
}

/// Records looked at in one observation.
const RECORDS_MAX: u64 = 1 << 17;
const SEEN_MAX: usize = 1 << 17;
/// Bound on one text: the `LOG_LINE_MAX` of any kernel, and more.
const TEXT_MAX: u64 = 8192;
const FINALIZED: u64 = 2;
const STATE_SHIFT: u32 = 62;
/// A position with this bit refers to no data.
const NO_DATA: u64 = 1;

/// The printk ring buffer of this kernel.
struct Ring {
    head_id: u64,
    tail_id: u64,
    descriptor_mask: u64,
    descriptors: u64,
    descriptor_bytes: u64,
    infos: u64,
    info_bytes: u64,
    data: u64,
    data_bits: u32,
    state: Field,
    begin: Field,
    next: Field,
    sequence: Field,
    time: Field,
    length: Field,
    facility: Field,
    level: Field,
}

impl Ring {
    fn of(probe: &Probe) -> Option<Self> {
        let ring = probe.word("prb")?;
        let of_ring = |path: &str| probe.reader.number(ring, probe.field("printk_ringbuffer", path)?);
        let bits = of_ring("desc_ring.count_bits").filter(|bits| (1..=24).contains(bits))?;
        let data_bits = of_ring("text_data_ring.size_bits").filter(|bits| (8..=32).contains(bits))?;
        let info = |path: &str| probe.field("printk_info", path);
        let descriptor = |path: &str| probe.field("prb_desc", path);
        Some(Self {
            head_id: of_ring("desc_ring.head_id.counter")?,
            tail_id: of_ring("desc_ring.tail_id.counter")?,
            descriptor_mask: (1 << bits) - 1,
            descriptors: of_ring("desc_ring.descs")?,
            descriptor_bytes: probe.types.size_of("prb_desc")?,
            infos: of_ring("desc_ring.infos")?,
            info_bytes: probe.types.size_of("printk_info")?,
            data: of_ring("text_data_ring.data")?,
            data_bits: u32::try_from(data_bits).ok()?,
            state: descriptor("state_var.counter")?,
            begin: descriptor("text_blk_lpos.begin")?,
            next: descriptor("text_blk_lpos.next")?,
            sequence: info("seq")?,
            time: info("ts_nsec")?,
            length: info("text_len")?,
            facility: info("facility")?,
            level: info("level")?,
        })
    }

    /// Number and time of a record, if it exists and is complete.
    fn head_of(&self, probe: &Probe, id: u64) -> Option<(u64, u64)> {
        let state = probe.reader.number(self.descriptor(id)?, self.state)?;
        let finished = state >> STATE_SHIFT == FINALIZED && (state ^ id) << 2 == 0;
        let info = self.info(id)?;
        let head = (probe.reader.number(info, self.sequence)?, probe.reader.number(info, self.time)?);
        finished.then_some(head)
    }

    fn line(&self, probe: &Probe, id: u64, (sequence, time_ns): (u64, u64)) -> Option<LogLine> {
        let (descriptor, info) = (self.descriptor(id)?, self.info(id)?);
        let of_info = |field: Field| probe.reader.number(info, field);
        let (begin, next) =
            (probe.reader.number(descriptor, self.begin)?, probe.reader.number(descriptor, self.next)?);
        let mut text = Vec::new();
        if begin & NO_DATA == 0 {
            let length = of_info(self.length)?.min(TEXT_MAX);
            // A block that would not fit before the end of the ring begins at the ring's start.
            let wraps = (begin >> self.data_bits) != (next >> self.data_bits)
                && next.trailing_zeros() < self.data_bits;
            let at = if wraps { 0 } else { begin & ((1 << self.data_bits) - 1) };
            text = vec![0; usize::try_from(length).ok()?];
            // The record's id precedes its text.
            probe.reader.read(self.data.checked_add(at + 8)?, &mut text)?;
        }
        Some(LogLine {
            sequence,
            time_ns,
            level: u8::try_from(of_info(self.level)? & 7).ok()?,
            facility: u8::try_from(of_info(self.facility)?).ok()?,
            text: printable(&text),
        })
    }

    fn descriptor(&self, id: u64) -> Option<u64> {
        self.descriptors.checked_add((id & self.descriptor_mask) * self.descriptor_bytes)
    }

    fn info(&self, id: u64) -> Option<u64> {
        self.infos.checked_add((id & self.descriptor_mask) * self.info_bytes)
    }
}

impl SeenLines {
    /// The log's lines that were not seen before, in order. `None` when this kernel's log cannot be read.
    pub(crate) fn read_new(&mut self, probe: &Probe) -> Option<Vec<LogLine>> {
        let ring = Ring::of(probe)?;
        let count = ring.head_id.wrapping_sub(ring.tail_id).min(ring.descriptor_mask).min(RECORDS_MAX) + 1;
        let mut lines = Vec::new();
        for back in 0..count {
            let id = ring.head_id.wrapping_sub(back) & (u64::MAX >> 2);
            let Some(head) = ring.head_of(probe, id) else { continue };
            if self.times.get(&head.0) == Some(&head.1) {
                break;
            }
            lines.extend(ring.line(probe, id, head));
        }
        lines.reverse();
        if let Some(first) = lines.first() {
            // Lines of another branch of history are forgotten.
            self.times.split_off(&first.sequence);
        }
        self.times.extend(lines.iter().map(|line| (line.sequence, line.time_ns)));
        while self.times.len() > SEEN_MAX {
            self.times.pop_first();
        }
        Some(lines)
    }
}
