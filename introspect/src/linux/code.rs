//! Which part of the kernel an address of code belongs to: its image, a module, or neither.

use super::{module_symbols::ModuleSymbols, modules::Modules};
use crate::probe::Probe;

/// The kernel's code and that of all modules.
pub(crate) struct Code<'c> {
    pub(crate) probe: &'c Probe<'c>,
    pub(crate) modules: &'c Modules,
    pub(crate) symbols: &'c ModuleSymbols,
}

/// What an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Kernel,
    /// The module with this index.
    Module(usize),
    Nobody,
}

impl<'c> Code<'c> {
    pub(crate) fn new(probe: &'c Probe<'c>, modules: &'c Modules, symbols: &'c ModuleSymbols) -> Self {
        Self { probe, modules, symbols }
    }

    /// The owner of an address, code or data. The kernel owns the addresses of its image.
    pub(crate) fn owner(&self, address: u64) -> Owner {
        if self.probe.kernel.image().contains(address) {
            return Owner::Kernel;
        }
        self.modules.at(address).map_or(Owner::Nobody, Owner::Module)
    }

    /// Whether the address is in the kernel's text.
    pub(crate) fn is_kernel_text(&self, address: u64) -> bool {
        self.probe.kernel.text().contains(&address)
    }

    /// Whether the address is in known code: the kernel's text, or a module that no view lacks.
    pub(crate) fn is_accounted(&self, address: u64) -> bool {
        self.is_kernel_text(address) || self.is_in_visible_module(address)
    }

    /// Whether the address is in a module that every view contains.
    pub(crate) fn is_in_visible_module(&self, address: u64) -> bool {
        match self.owner(address) {
            Owner::Module(module) => !self.modules.hidden.iter().any(|(hidden, _)| *hidden == module),
            Owner::Kernel | Owner::Nobody => false,
        }
    }

    /// `kernel`, or the module's name.
    pub(crate) fn owner_name(&self, address: u64) -> Option<String> {
        match self.owner(address) {
            Owner::Kernel => Some("kernel".to_owned()),
            Owner::Module(module) => self.modules.all.get(module).map(|module| module.name.clone()),
            Owner::Nobody => None,
        }
    }

    /// The symbol at an address: `name`, `name+0x1c`, followed by `[module]` for a module's.
    pub(crate) fn label(&self, address: u64) -> Option<String> {
        let Owner::Module(index) = self.owner(address) else { return self.probe.kernel.label(address) };
        let module = &self.modules.all.get(index)?.name;
        let symbol = self.symbols.place(address);
        Some(match symbol {
            Some((name, 0)) => format!("{name} [{module}]"),
            Some((name, offset)) => format!("{name}+{offset:#x} [{module}]"),
            None => format!("[{module}]"),
        })
    }

    /// An address with its symbol, if it has one.
    pub(crate) fn describe(&self, address: u64) -> String {
        match self.label(address) {
            Some(label) => format!("{address:#018x} {label}"),
            None => format!("{address:#018x}"),
        }
    }
}
