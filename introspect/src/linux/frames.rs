use retrovisor_guest::MemoryLayout;

use crate::{btf::Field, hash::IntegerMap, probe::Probe};

/// What the kernel's page descriptors say of every frame.
#[derive(Default)]
pub(crate) struct FrameKinds {
    kinds: Vec<Kind>,
    caches: Vec<String>,
    files: Vec<(u64, Option<String>)>,
}

/// What one frame is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Unknown,
    Free,
    Anonymous,
    /// Objects of an allocator's cache, by number.
    Slab {
        cache: u32,
    },
    /// A page of a file, by number.
    File {
        file: u32,
        page: u64,
    },
}

const NAME_MAX: usize = 64;
const FILE_NAME_MAX: usize = 256;
const FILES_MAX: usize = 1 << 20;
const ORDER_MAX: u64 = 20;

/// How a free block is marked: to 6.11 by a cleared bit under a base of ones, …
const OLD_BUDDY: (u32, u32) = (0xf000_0080, 0xf000_0000);
/// … then by a number in the top byte.
const NEW_BUDDY: u32 = 0xf0;

/// Where the fields of a page descriptor lie.
struct Fields {
    size: u64,
    flags: usize,
    mapping: usize,
    index: usize,
    private: usize,
    page_type: usize,
    head: usize,
    cache: Option<usize>,
    cache_name: Option<Field>,
    slab_flag: Option<u32>,
    slab_type: Option<u32>,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let place = |path: &str| usize::try_from(probe.field("page", path)?.offset_bytes).ok();
        let cache = probe.field("slab", "slab_cache").or_else(|| probe.field("page", "slab_cache"));
        let number = |item: &str| probe.types.enumerator(item).and_then(|value| u32::try_from(value).ok());
        Some(Self {
            size: probe.types.size_of("page").filter(|size| (32..=512).contains(size))?,
            flags: place("flags").or_else(|| place("flags.f"))?,
            mapping: place("mapping")?,
            index: place("index").or_else(|| place("__folio_index"))?,
            private: place("private")?,
            page_type: place("page_type")?,
            head: place("compound_head").or_else(|| place("compound_info"))?,
            cache: cache.and_then(|field| usize::try_from(field.offset_bytes).ok()),
            cache_name: probe.field("kmem_cache", "name"),
            slab_flag: number("PG_slab").filter(|bit| *bit < 64),
            slab_type: number("PGTY_slab"),
        })
    }

    /// Whether the descriptor says that the frame is the first of a free block.
    fn is_free(&self, descriptor: &[u8]) -> bool {
        let Some(kind) = half(descriptor, self.page_type) else { return false };
        if self.slab_type.is_some() { kind >> 24 == NEW_BUDDY } else { kind & OLD_BUDDY.0 == OLD_BUDDY.1 }
    }

    fn is_slab(&self, descriptor: &[u8]) -> bool {
        let by_type =
            self.slab_type.zip(half(descriptor, self.page_type)).map(|(slab, kind)| kind >> 24 == slab);
        let by_flag =
            self.slab_flag.zip(word(descriptor, self.flags)).map(|(bit, flags)| flags >> bit & 1 == 1);
        by_type.or(by_flag).unwrap_or(false)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

impl FrameKinds {
    /// Reads every descriptor. A kernel whose descriptors cannot be read leaves all frames unknown.
    pub(crate) fn read(probe: &Probe, layout: &MemoryLayout) -> Self {
        let count = usize::try_from(layout.pages()).unwrap_or(0);
        let mut kinds = Self { kinds: vec![Kind::Unknown; count], ..Self::default() };
        let (Some(fields), Some(base)) = (Fields::of(probe), probe.word("vmemmap_base")) else {
            return kinds;
        };
        let (mut caches, mut files) = (IntegerMap::default(), IntegerMap::default());
        let mut descriptor = vec![0; usize::try_from(fields.size).unwrap_or(0)];
        let mut free_until = 0;
        for (index, gfn) in layout.gfns().enumerate() {
            let at = gfn.0.checked_mul(fields.size).and_then(|offset| base.checked_add(offset));
            let Some(at) = at.filter(|at| probe.reader.read(*at, &mut descriptor).is_some()) else {
                continue;
            };
            let kind = if gfn.0 < free_until {
                Kind::Free
            } else if fields.is_free(&descriptor) {
                let order = word(&descriptor, fields.private).unwrap_or(0).min(ORDER_MAX);
                free_until = gfn.0 + (1 << order);
                Kind::Free
            } else {
                kinds.used(probe, &fields, at, &mut descriptor, (&mut caches, &mut files)).unwrap_or_default()
            };
            if let Some(place) = kinds.kinds.get_mut(index) {
                *place = kind;
            }
        }
        kinds
    }

    fn used(
        &mut self,
        probe: &Probe,
        fields: &Fields,
        at: u64,
        descriptor: &mut [u8],
        (caches, files): (&mut IntegerMap<u64, u32>, &mut IntegerMap<u64, u32>),
    ) -> Option<Kind> {
        let head = word(descriptor, fields.head)?;
        let mut part = 0;
        if head & 1 == 1 {
            // Part of a larger block: its first descriptor tells.
            part = at.checked_sub(head - 1).map_or(0, |bytes| bytes / fields.size);
            probe.reader.read(head - 1, descriptor)?;
        }
        if fields.is_slab(descriptor) {
            let cache = word(descriptor, fields.cache?)?;
            let number = *caches.entry(cache).or_insert_with(|| {
                let name = fields.cache_name.and_then(|name| probe.reader.pointer(cache, name));
                self.caches.push(name.and_then(|at| probe.reader.string(at, NAME_MAX)).unwrap_or_default());
                u32::try_from(self.caches.len() - 1).unwrap_or(u32::MAX)
            });
            return Some(Kind::Slab { cache: number });
        }
        let mapping = word(descriptor, fields.mapping)?;
        if mapping & 3 == 1 {
            return Some(Kind::Anonymous);
        }
        // What is no mapping of a file lies elsewhere than kernel pointers do.
        if mapping & 3 != 0 || mapping.cast_signed() >= 0 {
            return None;
        }
        let page = word(descriptor, fields.index)?.wrapping_add(part);
        if files.len() >= FILES_MAX {
            return None;
        }
        let file = if let Some(number) = files.get(&mapping) {
            *number
        } else {
            self.files.push(name_file(probe, mapping)?);
            let number = u32::try_from(self.files.len() - 1).ok()?;
            files.insert(mapping, number);
            number
        };
        Some(Kind::File { file, page })
    }

    pub(crate) fn kind(&self, index: usize) -> Kind {
        self.kinds.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn cache(&self, number: u32) -> &str {
        self.caches.get(number as usize).map_or("", String::as_str)
    }

    /// Inode number and name.
    pub(crate) fn file(&self, number: u32) -> (u64, Option<&str>) {
        self.files.get(number as usize).map_or((0, None), |(inode, name)| (*inode, name.as_deref()))
    }
}

/// The inode number of a mapping's file, and the name of its first directory entry.
fn name_file(probe: &Probe, mapping: u64) -> Option<(u64, Option<String>)> {
    let reader = probe.reader;
    let host = reader.pointer(mapping, probe.field("address_space", "host")?)?;
    let inode = reader.number(host, probe.field("inode", "i_ino")?)?;
    let name = || {
        let entry =
            reader.pointer(host, probe.field("inode", "i_dentry.first")?).filter(|entry| *entry != 0)?;
        let entry = entry.wrapping_sub(probe.field("dentry", "d_u.d_alias")?.offset_bytes);
        let name = reader.pointer(entry, probe.field("dentry", "d_name.name")?)?;
        reader.string(name, FILE_NAME_MAX).filter(|name| !name.is_empty())
    };
    Some((inode, name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(slab_flag: Option<u32>, slab_type: Option<u32>) -> Fields {
        Fields {
            size: 64,
            flags: 0,
            mapping: 24,
            index: 32,
            private: 40,
            page_type: 48,
            head: 8,
            cache: None,
            cache_name: None,
            slab_flag,
            slab_type,
        }
    }

    #[test]
    fn free_and_slab_are_told_by_flag_or_by_type() {
        let mut descriptor = [0; 64];
        let old = fields(Some(9), None);
        descriptor[48..52].copy_from_slice(&0xffff_ff7f_u32.to_le_bytes());
        assert!(old.is_free(&descriptor) && !old.is_slab(&descriptor));
        descriptor[1] = 2;
        assert!(old.is_slab(&descriptor));
        let new = fields(None, Some(0xf5));
        descriptor[48..52].copy_from_slice(&0xf500_0000_u32.to_le_bytes());
        assert!(new.is_slab(&descriptor) && !new.is_free(&descriptor));
        descriptor[51] = 0xf0;
        assert!(new.is_free(&descriptor));
        descriptor[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(!new.is_free(&descriptor) && !old.is_free(&descriptor));
    }
}
