use std::sync::Arc;

use crate::{btf::Field, hash::IntegerSet, probe::Probe};

/// The tree of physical addresses in /proc/iomem: firmware's and the kernel's record of what is located where.
#[derive(Default)]
pub(crate) struct Resources {
    /// First and last address, name; a part follows the resource that contains it.
    all: Vec<(u64, u64, Arc<str>)>,
}

const RESOURCES_MAX: usize = 1 << 14;
const NAME_MAX: usize = 64;

impl Resources {
    pub(crate) fn read(probe: &Probe) -> Option<Self> {
        let resource = |path: &str| probe.field("resource", path);
        let (start, end, name) = (resource("start")?, resource("end")?, resource("name")?);
        let (sibling, child) = (resource("sibling")?, resource("child")?);
        let root = probe.symbol("iomem_resource")?;
        let link = |at: u64, field: Field| probe.reader.pointer(at, field).filter(|next| *next != 0);
        let (mut all, mut seen) = (Vec::new(), IntegerSet::default());
        let mut pending: Vec<u64> = link(root, child).into_iter().collect();
        while let Some(at) = pending.pop() {
            if seen.len() >= RESOURCES_MAX || !seen.insert(at) {
                probe.mark_torn();
                break;
            }
            let range = probe.reader.pointer(at, start).zip(probe.reader.pointer(at, end));
            let name = link(at, name).and_then(|name| probe.reader.string(name, NAME_MAX));
            if let (Some((start, end)), Some(name)) = (range, name) {
                all.push((start, end, name.into()));
            }
            pending.extend(link(at, sibling));
            pending.extend(link(at, child));
        }
        Some(Self { all })
    }

    /// The name of the smallest resource that contains an address.
    pub(crate) fn name(&self, address: u64) -> Option<Arc<str>> {
        let holds = |(start, end, _): &&(u64, u64, Arc<str>)| (*start..=*end).contains(&address);
        let smallest = self.all.iter().filter(holds).min_by_key(|(start, end, _)| end - start)?;
        Some(Arc::clone(&smallest.2))
    }
}
