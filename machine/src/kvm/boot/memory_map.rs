use retrovisor_guest::MemoryLayout;

/// Usable memory ends here; ACPI tables and what real machines have there follow.
const LOW_END: u64 = 0x9_fc00;
/// Kernels may be loaded from here on.
pub(super) const FIRST_MIB: u64 = 1 << 20;
/// Kinds of memory, alike in both boot protocols.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A part of the guest's address space, and what it is.
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) bytes: u64,
    pub(super) kind: u32,
}

/// What is where, below and above the first mebibyte.
pub(super) fn memory_map(layout: &MemoryLayout) -> Vec<Part> {
    let low = Part { first: 0, bytes: LOW_END, kind: RAM };
    let reserved = Part { first: LOW_END, bytes: FIRST_MIB - LOW_END, kind: RESERVED };
    let slots = layout.slots().iter().map(|slot| {
        let first = slot.gpa.0.max(FIRST_MIB);
        Part { first, bytes: slot.end().0.saturating_sub(first), kind: RAM }
    });
    [low, reserved].into_iter().chain(slots).collect()
}
