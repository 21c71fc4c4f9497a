use crate::{btf::Field, hash::IntegerMap, probe::Probe};

/// A cache of the kernel's object allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlabCache {
    pub(crate) name: String,
    /// Distance from one object to the next; 0 when it cannot be read.
    pub(crate) stride_bytes: u64,
    /// Size of the object itself.
    pub(crate) object_bytes: u64,
    /// Whether several caches of one size were merged into it: then its name is the type of only some of its objects.
    pub(crate) is_merged: bool,
}

/// The known caches, by the address of their description.
#[derive(Default)]
pub(crate) struct SlabCaches {
    fields: Option<(Field, Option<Field>, Option<Field>)>,
    numbers: IntegerMap<u64, u32>,
    all: Vec<SlabCache>,
}

const NAME_MAX: usize = 64;
const CACHES_MAX: usize = 1 << 14;
const STRIDE_BYTES_MAX: u64 = 1 << 22;

impl SlabCaches {
    pub(crate) fn new(probe: &Probe) -> Self {
        let cache = |path: &str| probe.field("kmem_cache", path);
        let fields = cache("name").map(|name| (name, cache("size"), cache("object_size")));
        Self { fields, ..Self::default() }
    }

    /// The number of the cache whose description is at an address; `None` when there is none.
    pub(crate) fn number(&mut self, probe: &Probe, at: u64) -> Option<u32> {
        if let Some(number) = self.numbers.get(&at) {
            return Some(*number);
        }
        let (name, stride, object) = self.fields?;
        if self.all.len() >= CACHES_MAX {
            return None;
        }
        let name = probe.reader.string(probe.reader.pointer(at, name)?, NAME_MAX)?;
        let size = |field: Option<Field>| {
            let bytes = field.and_then(|field| probe.reader.number(at, field));
            bytes.filter(|bytes| (8..=STRIDE_BYTES_MAX).contains(bytes)).unwrap_or(0)
        };
        let number = u32::try_from(self.all.len()).ok()?;
        let users = probe.field("kmem_cache", "refcount").and_then(|field| probe.reader.number(at, field));
        let is_merged = users.is_some_and(|users| users > 1);
        self.all.push(SlabCache { name, stride_bytes: size(stride), object_bytes: size(object), is_merged });
        self.numbers.insert(at, number);
        Some(number)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&SlabCache> {
        self.all.get(number as usize)
    }
}

impl SlabCache {
    /// The first and the last object that overlap a frame: the `part`-th of its slab, which has `count` objects.
    pub(crate) fn objects(&self, part: u64, count: u64) -> Option<(u64, u64)> {
        let first = (part * 4096).checked_div(self.stride_bytes)?;
        let last = ((part + 1) * 4096 - 1) / self.stride_bytes;
        let last = last.min(count.checked_sub(1)?);
        (first <= last).then_some((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_the_objects_that_touch_it() {
        let cache = |stride_bytes| SlabCache { stride_bytes, ..SlabCache::default() };
        assert_eq!(cache(64).objects(0, 64), Some((0, 63)));
        assert_eq!(cache(3000).objects(1, 10), Some((1, 2)));
        assert_eq!(cache(3000).objects(1, 2), Some((1, 1)));
        assert_eq!(cache(3000).objects(1, 1), None, "the rest of a slab is empty");
        assert_eq!(cache(3000).objects(0, 0), None);
        assert_eq!(cache(0).objects(0, 4), None);
    }
}
