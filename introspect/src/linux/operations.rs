//! Tables of operations that the kernel reaches by pointer: of terminals, line disciplines, /proc entries and file
//! systems. The contents of constant tables are compared with the read-only data; here the owner of each table and
//! function is checked.

use super::code::{Code, Owner};
use crate::{
    btf::Field,
    fact::{Violation, ViolationKind},
    hash::IntegerSet,
};

const DRIVERS_MAX: usize = 512;
const DISCIPLINES_MAX: u64 = 64;
const SUPERS_MAX: usize = 4096;
const PROC_ENTRIES_MAX: usize = 16_384;
const NAME_MAX: usize = 64;
const TABLE_BYTES_MAX: u64 = 1024;
/// The range in which the kernel's image and modules are mapped.
const CODE_FIRST: u64 = 0xffff_ffff_8000_0000;

/// Every table, and every function in one, that belongs neither to the kernel nor to a module that all views contain.
pub(crate) fn redirected(code: &Code) -> Vec<Violation> {
    let mut found = Checked { code, tables: IntegerSet::default(), violations: Vec::new() };
    let _ = terminals(&mut found);
    let _ = line_disciplines(&mut found);
    let _ = file_systems(&mut found);
    let _ = proc_entries(&mut found);
    found.violations
}

struct Checked<'c, 'p> {
    code: &'c Code<'p>,
    /// Tables that were checked: each is checked once.
    tables: IntegerSet<u64>,
    violations: Vec<Violation>,
}

impl Checked<'_, '_> {
    /// Whether an address in the range of code and modules belongs to the kernel or to a module that every view contains.
    fn is_accounted(&self, address: u64) -> bool {
        match self.code.owner(address) {
            Owner::Kernel => true,
            Owner::Module(_) => self.code.is_in_visible_module(address),
            Owner::Nobody => false,
        }
    }

    fn violation(&mut self, object: String, detail: String, address: u64) {
        self.violations.push(Violation {
            kind: ViolationKind::OperationsRedirected,
            object,
            symbol: self.code.label(address),
            detail,
            expected: "the kernel's or a module's".into(),
            found: self.code.describe(address),
        });
    }

    /// Checks a table (by pointer) and everything in it that points to code or modules.
    fn table(&mut self, object: impl Fn() -> String, structure: &str, at: u64) {
        if at == 0 || !self.tables.insert(at) {
            return;
        }
        if at >= CODE_FIRST && !self.is_accounted(at) {
            self.violation(object(), format!("its {structure} is outside the kernel and its modules"), at);
            return;
        }
        // The kernel's read-only data is compared byte by byte elsewhere.
        let Some(bytes) = self.code.probe.types.size_of(structure).filter(|bytes| *bytes <= TABLE_BYTES_MAX)
        else {
            return;
        };
        let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
        if self.code.probe.reader.read(at, &mut table).is_none() {
            return;
        }
        for word in table.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            if (CODE_FIRST..u64::MAX - 4096).contains(&word) && !self.is_accounted(word) {
                self.violation(
                    object(),
                    format!("an entry of its {structure} leads out of the kernel and its modules"),
                    word,
                );
            }
        }
    }
}

fn terminals(found: &mut Checked) -> Option<()> {
    let (probe, reader) = (found.code.probe, found.code.probe.reader);
    let field = |path: &str| probe.field("tty_driver", path);
    let (link, operations, name) = (field("tty_drivers")?, field("ops")?, field("driver_name")?);
    for at in reader.list(probe.symbol("tty_drivers")?, DRIVERS_MAX).links {
        let driver = at.wrapping_sub(link.offset_bytes);
        let table = reader.pointer(driver, operations)?;
        let object = || {
            let name = reader.pointer(driver, name).and_then(|at| reader.string(at, NAME_MAX));
            format!("terminal driver {}", name.unwrap_or_default())
        };
        found.table(object, "tty_operations", table);
    }
    Some(())
}

fn line_disciplines(found: &mut Checked) -> Option<()> {
    let probe = found.code.probe;
    let array = probe.symbol("tty_ldiscs")?;
    let count = (probe.kernel.place(array)?.size / 8).min(DISCIPLINES_MAX);
    for number in 0..count {
        let table = probe.reader.u64(array + number * 8)?;
        found.table(|| format!("line discipline {number}"), "tty_ldisc_ops", table);
    }
    Some(())
}

fn file_systems(found: &mut Checked) -> Option<()> {
    let (probe, reader) = (found.code.probe, found.code.probe.reader);
    let super_block = |path: &str| probe.field("super_block", path);
    let (link, root, identity) = (super_block("s_list")?, super_block("s_root")?, super_block("s_id")?);
    let inode_of = probe.field("dentry", "d_inode")?;
    let inode = |path: &str| probe.field("inode", path);
    let (files, inodes) = (inode("i_fop")?, inode("i_op")?);
    for at in reader.list(probe.symbol("super_blocks")?, SUPERS_MAX).links {
        let at = at.wrapping_sub(link.offset_bytes);
        let name = || {
            let name = reader.string(at.wrapping_add(identity.offset_bytes), NAME_MAX.min(32));
            format!("root of the file system on {}", name.unwrap_or_default())
        };
        if let Some(table) = super_block("s_op").and_then(|field| reader.pointer(at, field)) {
            found.table(name, "super_operations", table);
        }
        // A file system that is being mounted has no root yet.
        let root = reader.pointer(at, root).filter(|root| *root != 0);
        let Some(inode) = root.and_then(|root| reader.pointer(root, inode_of)).filter(|inode| *inode != 0)
        else {
            continue;
        };
        for (field, structure) in [(files, "file_operations"), (inodes, "inode_operations")] {
            if let Some(table) = reader.pointer(inode, field) {
                found.table(name, structure, table);
            }
        }
    }
    Some(())
}

fn proc_entries(found: &mut Checked) -> Option<()> {
    let (probe, reader) = (found.code.probe, found.code.probe.reader);
    let entry = |path: &str| probe.field("proc_dir_entry", path);
    let (children, node, name) = (entry("subdir")?, entry("subdir_node")?, entry("name")?);
    let (left, right) = (probe.field("rb_node", "rb_left")?, probe.field("rb_node", "rb_right")?);
    let tables: Vec<(Field, &str)> = [("proc_ops", "proc_ops"), ("proc_iops", "inode_operations")]
        .into_iter()
        .filter_map(|(path, structure)| Some((entry(path)?, structure)))
        .collect();
    // Either a table or a single function: the entry does not record which.
    let show = entry("seq_ops");
    let mut seen = IntegerSet::default();
    let mut pending = vec![reader.pointer(probe.symbol("proc_root")?, children)?];
    // The entries of the first network namespace.
    let network = probe.field("net", "proc_net").zip(probe.symbol("init_net"));
    let network = network.and_then(|(field, net)| reader.pointer(net, field)).filter(|at| *at != 0);
    pending.extend(network.and_then(|at| reader.pointer(at, children)));
    while let Some(at) = pending.pop() {
        if at == 0 {
            continue;
        }
        if seen.len() == PROC_ENTRIES_MAX || !seen.insert(at) {
            probe.mark_torn();
            return None;
        }
        pending.extend([left, right].into_iter().filter_map(|side| reader.pointer(at, side)));
        let at = at.wrapping_sub(node.offset_bytes);
        pending.extend(reader.pointer(at, children));
        let object = || {
            let name = reader.pointer(at, name).and_then(|at| reader.string(at, NAME_MAX));
            format!("/proc entry {}", name.unwrap_or_default())
        };
        for (field, structure) in &tables {
            if let Some(table) = reader.pointer(at, *field) {
                found.table(object, structure, table);
            }
        }
        let show = show.and_then(|field| reader.pointer(at, field)).filter(|show| *show >= CODE_FIRST);
        if let Some(show) = show.filter(|show| !found.is_accounted(*show) && found.tables.insert(*show)) {
            found.violation(object(), "what it shows is outside the kernel and its modules".into(), show);
        }
    }
    Some(())
}
