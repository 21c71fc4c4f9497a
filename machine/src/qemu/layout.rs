//! Guest addresses of the memory file, from the monitor's `info mtree -f`.

use std::collections::BTreeSet;

use retrovisor_guest::{Gpa, MemoryLayout, MemorySlot};

/// The part of the file below the hole is one slot, the part above it another.
///
/// The text shows the region named `region` in pieces, each with its place in the file; read-only pieces and pieces
/// that are hidden by devices are memory as well. Anything else is an error.
pub(super) fn parse(text: &str, region: &str, length_bytes: u64) -> Result<MemoryLayout, String> {
    // Places where the file does not begin at address 0: the guest address and the place in the file.
    let mut moved = BTreeSet::new();
    let mut any = false;
    for (gpa, offset) in text.lines().filter_map(|line| piece(line, region)) {
        any = true;
        if gpa != offset {
            moved.insert((offset, gpa));
        }
    }
    if !any {
        return Err(format!("the memory region {region} is not in the guest's address space"));
    }
    let Some(&(low_bytes, high)) = moved.first() else {
        return MemoryLayout::flat(length_bytes).map_err(|error| error.to_string());
    };
    let steps = moved.iter().map(|(offset, gpa)| gpa.wrapping_sub(*offset)).collect::<BTreeSet<_>>();
    let high_bytes = length_bytes.checked_sub(low_bytes).ok_or("a piece past the end of the memory file")?;
    if steps.len() != 1 {
        return Err("the guest's memory is in more than two places".into());
    }
    MemoryLayout::new(vec![
        MemorySlot { gpa: Gpa(0), length_bytes: low_bytes },
        MemorySlot { gpa: Gpa(high), length_bytes: high_bytes },
    ])
    .map_err(|error| error.to_string())
}

/// `  0000000000000000-00000000000c2fff (prio 0, ram): ram @00000000000c3000 KVM` as address and place.
fn piece(line: &str, region: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.trim().split_once(" (prio ")?;
    let (start, _) = range.split_once('-')?;
    let (kind, name) = rest.split_once("): ")?;
    if !matches!(kind.split_once(", ")?.1, "ram" | "rom") {
        return None;
    }
    let after = name.strip_prefix(region)?;
    let mut words = after.split(' ');
    if !words.next()?.is_empty() {
        return None;
    }
    let offset = words.find_map(|word| word.strip_prefix('@')).unwrap_or("0");
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(offset, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "FlatView #1
 AS \"cpu-smm-1\", root: memory
 Root memory region: memory
  0000000000000000-00000000000c2fff (prio 0, ram): ram
  00000000000c3000-00000000000e7fff (prio 0, rom): ram @00000000000c3000
  00000000000e8000-00000000000effff (prio 0, ram): ram @00000000000e8000 KVM
  0000000000100000-000000007fffffff (prio 0, ram): ram @0000000000100000
  00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  00000000fffd0000-00000000ffffffff (prio 0, ram): ram2 @0000000000700000
";

    #[test]
    fn one_slot_or_two() {
        assert_eq!(parse(TEXT, "ram", 2 << 30).unwrap(), MemoryLayout::flat(2 << 30).unwrap());
        let high =
            format!("{TEXT}  0000000100000000-000000017fffffff (prio 0, ram): ram @0000000080000000\n");
        let layout = parse(&high, "ram", 4 << 30).unwrap();
        assert_eq!(layout.slots()[0], MemorySlot { gpa: Gpa(0), length_bytes: 2 << 30 });
        assert_eq!(layout.slots()[1], MemorySlot { gpa: Gpa(4 << 30), length_bytes: 2 << 30 });
        assert!(parse(&high, "ram", 1 << 30).is_err());
        assert!(parse(&high, "other", 4 << 30).is_err());
        let third =
            format!("{high}  0000000200000000-000000027fffffff (prio 0, ram): ram @00000000c0000000\n");
        assert!(parse(&third, "ram", 6 << 30).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_layout_or_an_error(pieces in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..6), size in any::<u64>(), text in ".{0,90}") {
            let pieces = pieces.into_iter().map(|(gpa, offset, aligned)| {
                let mask = if aligned { !0xfff } else { !0 };
                format!("  {:016x}-0 (prio 0, ram): ram @{:016x}", gpa & mask, offset & mask)
            });
            let all = pieces.chain([text]).collect::<Vec<_>>().join("\n");
            let _ = parse(&all, "ram", size);
        }
    }
}
