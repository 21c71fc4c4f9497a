use std::sync::Arc;

use crate::{btf::Field, probe::Probe};

/// The memory of the modules by section, where the kernel records the sections.
pub(crate) struct ModuleSections {
    /// Ascending: module, first address, section. The address of a freed section (start-up code) is still listed, and
    /// may belong to another module now.
    all: Vec<(Arc<str>, u64, Arc<str>)>,
}

const MODULES_MAX: usize = 4096;
const SECTIONS_MAX: u64 = 1024;
const NAME_MAX: usize = 64;

impl ModuleSections {
    /// Reads the contents of /sys/module/NAME/sections.
    pub(crate) fn read(probe: &Probe) -> Option<Self> {
        let list = probe.field("module", "list")?;
        let name = probe.field("module", "name")?;
        let attributes = probe.field("module", "sect_attrs")?;
        let layout = Layout::of(probe)?;
        let mut all = Vec::new();
        for link in probe.reader.list(probe.symbol("modules")?, MODULES_MAX).links {
            let module = link.wrapping_sub(list.offset_bytes);
            let Some(name) = probe.reader.string(module.wrapping_add(name.offset_bytes), NAME_MAX) else {
                continue;
            };
            let name: Arc<str> = name.into();
            let Some(at) = probe.reader.pointer(module, attributes).filter(|at| *at != 0) else { continue };
            layout.read(probe, at, &name, &mut all);
        }
        all.sort_unstable();
        Some(Self { all })
    }

    /// The section of a module that contains the first byte of a frame, and the offset in it; or the first section that
    /// begins in the frame.
    pub(crate) fn section(&self, module: &str, virt: u64) -> Option<(Arc<str>, u64)> {
        let end = self.all.partition_point(|(owner, start, _)| (&**owner, *start) <= (module, virt));
        let before =
            end.checked_sub(1).and_then(|at| self.all.get(at)).filter(|(owner, ..)| &**owner == module);
        let begins =
            |(owner, start, _): &&(Arc<str>, u64, Arc<str>)| &**owner == module && start - virt < 4096;
        let (_, start, section) = before.or_else(|| self.all.get(end).filter(begins))?;
        Some((Arc::clone(section), virt.saturating_sub(*start)))
    }
}

struct Layout {
    /// The array of attributes, from the start of the structure.
    first: u64,
    stride: u64,
    name: Field,
    address: Field,
    /// In kernels up to 6.13 they are counted; later a null name ends them.
    count: Option<Field>,
}

impl Layout {
    fn of(probe: &Probe) -> Option<Self> {
        let attributes = probe.field("module_sect_attrs", "attrs")?;
        let stride = probe.types.array(attributes)?.0;
        let own = probe.field("module_sect_attr", "address");
        let (name, address) = match own {
            Some(address) => (probe.field("module_sect_attr", "battr.attr.name")?, address),
            None => (probe.field("bin_attribute", "attr.name")?, probe.field("bin_attribute", "private")?),
        };
        let count = probe.field("module_sect_attrs", "nsections");
        (stride > 0).then_some(Self { first: attributes.offset_bytes, stride, name, address, count })
    }

    fn read(&self, probe: &Probe, at: u64, module: &Arc<str>, all: &mut Vec<(Arc<str>, u64, Arc<str>)>) {
        let count = self.count.and_then(|count| probe.reader.number(at, count));
        for number in 0..count.unwrap_or(SECTIONS_MAX).min(SECTIONS_MAX) {
            let attribute = at.wrapping_add(self.first).wrapping_add(number * self.stride);
            let name = probe.reader.pointer(attribute, self.name).filter(|name| *name != 0);
            let Some(name) = name.and_then(|name| probe.reader.string(name, NAME_MAX)) else { return };
            if let Some(address) = probe.reader.pointer(attribute, self.address).filter(|at| *at != 0) {
                all.push((Arc::clone(module), address, name.into()));
            }
        }
    }
}
