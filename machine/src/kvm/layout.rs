use retrovisor_guest::{Gpa, MachineError, MemoryLayout, MemorySlot, PAGE_SIZE};

/// From here to 4 GiB there is no memory, but devices and interrupt controllers.
const HOLE: u64 = 3 << 30;
const HOLE_END: u64 = 4 << 30;
/// Smallest memory in which a Linux guest starts.
const BYTES_MIN: u64 = 64 << 20;

/// The memory layout of a microVM: from address 0 up to 3 GiB, and the rest from 4 GiB on.
pub fn memory_layout(bytes: u64) -> Result<MemoryLayout, MachineError> {
    let refused = |what: String| MachineError::Config {
        what,
        help: "A microVM has 64 MiB to 64 GiB of memory, a whole number of pages".into(),
    };
    if bytes < BYTES_MIN || !bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(refused(format!("{bytes} bytes of memory are not usable")));
    }
    let low = bytes.min(HOLE);
    let mut slots = vec![MemorySlot { gpa: Gpa(0), length_bytes: low }];
    if bytes > low {
        slots.push(MemorySlot { gpa: Gpa(HOLE_END), length_bytes: bytes - low });
    }
    MemoryLayout::new(slots).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let flat = memory_layout(3 << 30).unwrap();
        assert_eq!(flat, MemoryLayout::flat(3 << 30).unwrap());
        let split = memory_layout(6 << 30).unwrap();
        let slots: Vec<_> = split.slots().iter().map(|slot| (slot.gpa.0, slot.length_bytes)).collect();
        assert_eq!(slots, [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn too_little_and_odd_sizes_are_refused() {
        for bytes in [0, 4096, (64 << 20) - 4096, (64 << 20) + 1, u64::MAX] {
            assert!(matches!(memory_layout(bytes), Err(MachineError::Config { .. })), "{bytes}");
        }
    }
}
