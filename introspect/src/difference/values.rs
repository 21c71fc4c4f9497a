//! A plain value as text.

use crate::{
    btf::{Leaf, LeafKind},
    printable::printable,
    probe::Probe,
};

const TEXT_MAX: u64 = 64;
/// Larger numbers are written in hexadecimal.
const DECIMAL_MAX: u64 = 1 << 48;

/// The value of a leaf of the structure at an address; `None` when it cannot be read.
pub(super) fn format(probe: &Probe, base: u64, leaf: &Leaf) -> Option<String> {
    let at = base.checked_add(leaf.offset_bytes)?;
    if matches!(leaf.kind, LeafKind::Text) {
        let mut bytes = vec![0; usize::try_from(leaf.size_bytes.min(TEXT_MAX)).ok()?];
        probe.reader.read(at, &mut bytes)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        return Some(format!("\"{}\"", printable(&bytes[..end])));
    }
    let size = usize::try_from(leaf.size_bytes).ok()?;
    let mut word = [0; 8];
    probe.reader.read(at, &mut word[..size.min(8)])?;
    let raw = u64::from_le_bytes(word);
    let value = match leaf.bits {
        Some((first, count)) => {
            (raw >> first) & 1_u64.checked_shl(count.into()).map_or(u64::MAX, |bit| bit - 1)
        }
        None => raw,
    };
    if leaf.path.ends_with("i_mode") || leaf.path.ends_with("umask") {
        return Some(format!("{value:#o}").replacen("0o", "0", 1));
    }
    Some(match leaf.kind {
        LeafKind::Signed => {
            let unused = 64 - 8 * u32::try_from(size.min(8)).unwrap_or(8);
            number(
                ((value << unused).cast_signed() >> unused).unsigned_abs(),
                (value << unused).cast_signed() < 0,
            )
        }
        LeafKind::Boolean => (value != 0).to_string(),
        LeafKind::Pointer => pointer(probe, value),
        LeafKind::Enumeration(id) => {
            probe.types.value_name(id, value).unwrap_or_else(|| number(value, false))
        }
        LeafKind::Unsigned => pointer_or_number(probe, value),
        LeafKind::Text | LeafKind::Bytes => format!("{value:#x}…"),
    })
}

/// A word of unknown type.
pub(super) fn word(probe: &Probe, value: u64) -> String {
    pointer_or_number(probe, value)
}

fn pointer(probe: &Probe, value: u64) -> String {
    match value {
        0 => "null".to_owned(),
        _ => probe.kernel.label(value).unwrap_or_else(|| format!("{value:#x}")),
    }
}

fn pointer_or_number(probe: &Probe, value: u64) -> String {
    if value.cast_signed() < 0 { pointer(probe, value) } else { number(value, false) }
}

fn number(value: u64, negative: bool) -> String {
    let sign = if negative { "-" } else { "" };
    if value < DECIMAL_MAX { format!("{sign}{value}") } else { format!("{sign}{value:#x}") }
}
