use std::hash::{BuildHasherDefault, Hasher};

/// Hashes small integers (frame and page numbers) with one multiplication.
///
/// The keys come from the guest, which could make them collide. All maps are bounded, so that collisions slow down
/// reading that guest by at most a constant factor.
#[derive(Clone, Copy, Default)]
pub(crate) struct IntegerHasher(u64);

impl Hasher for IntegerHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A map keyed by one integer.
pub(crate) type IntegerMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<IntegerHasher>>;
/// A set of integers.
pub(crate) type IntegerSet<K> = std::collections::HashSet<K, BuildHasherDefault<IntegerHasher>>;

/// FNV-1a with a wide multiplication, for short names: fast, and sufficient for bounded tables.
pub(crate) fn of_name(name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^ (hash >> 29)
}
