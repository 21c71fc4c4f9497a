use super::modules::Modules;
use crate::{btf::Field, printable::printable, probe::Probe};

/// The symbols of loaded modules. They are read once, at the first observation of a module.
#[derive(Default)]
pub(crate) struct ModuleSymbols {
    modules: Vec<Table>,
}

/// The symbols of one module.
struct Table {
    /// Addresses of its `struct module` and of its symbol table, which distinguish it from a later module at the same
    /// place.
    identity: (u64, u64),
    name: String,
    /// Its memory: start and end of each part.
    areas: Vec<(u64, u64)>,
    /// Ascending by address.
    symbols: Vec<(u64, String)>,
}

const SYMBOLS_MAX: u64 = 1 << 17;
/// Bound on the symbols of all modules together.
const ALL_SYMBOLS_MAX: usize = 1 << 20;
const NAME_MAX: usize = 512;

impl ModuleSymbols {
    /// Adds the modules that are loaded now, and removes those that are not.
    pub(crate) fn update(&mut self, probe: &Probe, modules: &Modules) -> Option<()> {
        let kallsyms = probe.field("module", "kallsyms")?;
        let table = |path: &str| probe.field("mod_kallsyms", path);
        let (symbols, count, names) = (table("symtab")?, table("num_symtab")?, table("strtab")?);
        let mut before = std::mem::take(&mut self.modules);
        let mut total = 0;
        for (index, (module, structure)) in modules.all.iter().zip(&modules.structures).enumerate() {
            let Some(own) = probe.reader.pointer(*structure, kallsyms).filter(|own| *own != 0) else {
                continue;
            };
            let Some(at) = probe.reader.pointer(own, symbols) else { continue };
            let identity = (*structure, at);
            let known =
                before.iter().position(|table| table.identity == identity && table.name == module.name);
            let table = if let Some(known) = known {
                before.swap_remove(known)
            } else {
                let read = || {
                    let count = probe.reader.number(own, count)?.min(SYMBOLS_MAX);
                    read_symbols(probe, at, count, probe.reader.pointer(own, names)?)
                };
                let mut symbols = read().unwrap_or_default();
                symbols.sort_unstable();
                Table { identity, name: module.name.clone(), areas: Vec::new(), symbols }
            };
            total += table.symbols.len();
            if total > ALL_SYMBOLS_MAX {
                probe.mark_torn();
                break;
            }
            let own = modules.areas.iter().filter(|(.., of)| *of == index);
            let areas = own.map(|(start, bytes, _)| (*start, start.saturating_add(*bytes))).collect();
            self.modules.push(Table { areas, ..table });
        }
        Some(())
    }

    /// An address in a module as `name+0x1c [module]`.
    pub(crate) fn label(&self, address: u64) -> Option<String> {
        let table = self.modules.iter().find(|table| table.contains(address))?;
        let after = table.symbols.partition_point(|(start, _)| *start <= address);
        let (start, name) = after.checked_sub(1).and_then(|at| table.symbols.get(at))?;
        Some(format!("{name}+{:#x} [{}]", address - start, table.name))
    }

    /// The symbol of a module that contains an address, and the offset in it.
    pub(crate) fn place(&self, address: u64) -> Option<(&str, u64)> {
        let table = self.modules.iter().find(|table| table.contains(address))?;
        let after = table.symbols.partition_point(|(start, _)| *start <= address);
        let before = table.symbols.get(..after)?.iter().rev();
        // Padding before a function has a symbol of its own.
        let (start, name) = before.into_iter().find(|(_, name)| !name.starts_with("__pfx_"))?;
        table.contains(*start).then_some((name.as_str(), address - start))
    }

    /// All symbols: module, address, name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.modules.iter().flat_map(|table| {
            table.symbols.iter().map(|(address, name)| (table.name.as_str(), *address, name.as_str()))
        })
    }
}

impl Table {
    fn contains(&self, address: u64) -> bool {
        self.areas.iter().any(|(start, end)| (*start..*end).contains(&address))
    }
}

/// An ELF symbol table with its names, in the form that the module loader keeps; unnamed symbols are left out.
fn read_symbols(probe: &Probe, at: u64, count: u64, names: u64) -> Option<Vec<(u64, String)>> {
    let bytes = probe.types.size_of("elf64_sym").filter(|bytes| *bytes == 24)?;
    let field = |path: &str| probe.field("elf64_sym", path);
    let (name, value) = (field("st_name")?, field("st_value")?);
    let mut table = vec![0; usize::try_from(count * bytes).ok()?];
    probe.reader.read(at, &mut table)?;
    let mut symbols = Vec::new();
    for symbol in table.chunks_exact(24) {
        let number = |field: Field| {
            let at = usize::try_from(field.offset_bytes).ok()?;
            let mut word = [0; 8];
            let bytes = symbol.get(at..at + usize::try_from(field.size_bytes).ok()?.min(8))?;
            word.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(u64::from_le_bytes(word))
        };
        let name = probe.reader.bytes_to_nul(names.checked_add(number(name)?)?, NAME_MAX)?;
        if !name.is_empty() {
            symbols.push((number(value)?, printable(&name)));
        }
    }
    Some(symbols)
}
