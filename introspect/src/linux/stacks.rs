use std::{cell::RefCell, ops::Range};

use super::{module_symbols::ModuleSymbols, modules::Modules};
use crate::{btf::Field, fact::Task, hash::IntegerMap, probe::Probe};

/// Unwinds the kernel stacks of sleeping tasks with the kernel's own unwind table (ORC).
pub(crate) struct Stacks<'p, 'a> {
    probe: &'p Probe<'a>,
    fields: Fields,
    tables: Vec<Table>,
    /// Code of the scheduler and of locks: every sleeping task is in it, so it is skipped.
    uninteresting: Vec<Range<u64>>,
    registers: Registers,
    steps: RefCell<IntegerMap<u64, Option<Step>>>,
}

struct Fields {
    stack: Field,
    pointer: Field,
    base: Field,
    return_address: Field,
    frame_bytes: u64,
    sp_offset: Field,
    bp_offset: Field,
    sp_register: Field,
    bp_register: Field,
    kind: Field,
    /// Marks the outermost function, in kernels up to 6.3; later that is an entry type of its own.
    end: Option<Field>,
    entry_bytes: u64,
}

/// A table of addresses, and one with the entry that is valid from each of them on.
struct Table {
    text: Range<u64>,
    addresses: u64,
    entries: u64,
    count: u64,
}

/// How to get from a function's frame to its caller's.
#[derive(Clone, Copy)]
struct Step {
    from_bp: bool,
    offset: i64,
    saved_bp: Option<i64>,
}

const FRAMES_MAX: u32 = 64;
const STACK_BYTES_MAX: u64 = 64 << 10;
const ENTRIES_MAX: u64 = 1 << 24;
/// ORC's number of the base pointer. The other numbers differ between kernels.
const REGISTER_BP: u64 = 4;
/// Entries examined to learn the other numbers.
const SAMPLE: u64 = 512;

/// This kernel's register numbers in the table.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    sp: u64,
    /// The stack pointer before the call.
    previous_sp: u64,
}

impl<'p, 'a> Stacks<'p, 'a> {
    /// `None` when this kernel has no such table. The register numbers are learnt once for each boot.
    pub(crate) fn new(
        probe: &'p Probe<'a>,
        modules: &Modules,
        learnt: &mut Option<Registers>,
    ) -> Option<Self> {
        let frame = |path: &str| probe.field("inactive_task_frame", path);
        let entry = |path: &str| probe.field("orc_entry", path);
        let fields = Fields {
            stack: probe.field("task_struct", "stack")?,
            pointer: probe.field("task_struct", "thread.sp")?,
            base: frame("bp")?,
            return_address: frame("ret_addr")?,
            frame_bytes: probe.types.size_of("inactive_task_frame")?,
            sp_offset: entry("sp_offset")?,
            bp_offset: entry("bp_offset")?,
            sp_register: entry("sp_reg")?,
            bp_register: entry("bp_reg")?,
            kind: entry("type")?,
            end: entry("end"),
            entry_bytes: probe.types.size_of("orc_entry")?,
        };
        let addresses = probe.symbol("__start_orc_unwind_ip")?;
        let count = probe.symbol("__stop_orc_unwind_ip")?.checked_sub(addresses)? / 4;
        let mut tables = vec![Table {
            text: probe.kernel.text(),
            addresses,
            entries: probe.symbol("__start_orc_unwind")?,
            count: count.min(ENTRIES_MAX),
        }];
        tables.extend(tables_of_modules(probe, modules).unwrap_or_default());
        let range = |name: &str| {
            let bound = |edge: &str| probe.symbol(&format!("__{name}_text_{edge}"));
            Some(bound("start")?..bound("end")?)
        };
        let uninteresting = ["sched", "lock"].into_iter().filter_map(range).collect();
        let registers = match *learnt {
            Some(registers) => registers,
            None => *learnt.insert(Registers::learn(probe, &fields, tables.first()?)?),
        };
        Some(Self { probe, fields, tables, uninteresting, registers, steps: RefCell::default() })
    }

    /// Fills in the function in which each sleeping task sleeps.
    pub(crate) fn complete(&self, tasks: &mut [Task], modules: &ModuleSymbols) {
        for task in tasks.iter_mut().filter(|task| !task.on_cpu && !matches!(task.state, 'R' | 'X' | 'Z')) {
            let place = self.first_beyond_scheduler(task.address);
            task.waits_in = place.and_then(|at| self.probe.kernel.label(at).or_else(|| modules.label(at)));
        }
    }

    fn first_beyond_scheduler(&self, task: u64) -> Option<u64> {
        let (fields, reader) = (&self.fields, self.probe.reader);
        let stack = reader.pointer(task, fields.stack)?;
        let frame = reader.pointer(task, fields.pointer)?;
        let bounds = stack..stack.checked_add(STACK_BYTES_MAX)?;
        if !bounds.contains(&frame) {
            return None;
        }
        let (mut bp, mut ip) =
            (reader.pointer(frame, fields.base)?, reader.pointer(frame, fields.return_address)?);
        let mut sp = frame.checked_add(fields.frame_bytes)?;
        for _ in 0..FRAMES_MAX {
            if !self.uninteresting.iter().any(|range| range.contains(&ip)) {
                return Some(ip);
            }
            // The return address is behind the call, which may be a function's last instruction.
            let step = self.step(ip.checked_sub(1)?)?;
            let start = if step.from_bp { bp } else { sp };
            let caller = start
                .checked_add_signed(step.offset)
                .filter(|caller| *caller > sp && bounds.contains(caller))?;
            if let Some(saved) = step.saved_bp {
                bp = reader.u64(caller.checked_add_signed(saved)?)?;
            }
            ip = reader.u64(caller - 8)?;
            sp = caller;
        }
        None
    }

    fn step(&self, ip: u64) -> Option<Step> {
        if let Some(known) = self.steps.borrow().get(&ip) {
            return *known;
        }
        let step = self.read_step(ip);
        self.steps.borrow_mut().insert(ip, step);
        step
    }

    fn read_step(&self, ip: u64) -> Option<Step> {
        let table = self.tables.iter().find(|table| table.text.contains(&ip))?;
        let reader = self.probe.reader;
        let address = |index: u64| {
            let at = table.addresses.checked_add(index * 4)?;
            Some(at.wrapping_add_signed(reader.i32(at)?.into()))
        };
        // Finds the last entry that is not behind the address.
        let (mut low, mut high) = (0, table.count);
        while low < high {
            let middle = low.midpoint(high);
            if address(middle)? <= ip { low = middle + 1 } else { high = middle }
        }
        let entry = table.entries.checked_add(low.checked_sub(1)?.checked_mul(self.fields.entry_bytes)?)?;
        let fields = &self.fields;
        let number = |field: Field| reader.number(entry, field);
        let signed = |field: Field| {
            number(field).and_then(|raw| u16::try_from(raw).ok()).map(|raw| i64::from(raw.cast_signed()))
        };
        let call = if fields.end.is_some() { 0 } else { 2 };
        let outermost = fields.end.and_then(number).unwrap_or(0) != 0;
        if outermost || number(fields.kind)? != call {
            return None;
        }
        Some(Step {
            from_bp: match number(fields.sp_register)? {
                register if register == self.registers.sp => false,
                REGISTER_BP => true,
                _ => return None,
            },
            offset: signed(fields.sp_offset)?,
            saved_bp: match number(fields.bp_register)? {
                0 => None,
                register if register == self.registers.previous_sp => Some(signed(fields.bp_offset)?),
                _ => return None,
            },
        })
    }
}

impl Registers {
    /// Learns the numbers from the most common entries: functions begin 8 bytes below the caller's frame, and those
    /// that save the base pointer save it 16 bytes below.
    fn learn(probe: &Probe, fields: &Fields, table: &Table) -> Option<Self> {
        let (mut sp, mut previous_sp) = ([0_u32; 16], [0_u32; 16]);
        let apart = (table.count / SAMPLE).max(1);
        for index in (0..table.count).step_by(usize::try_from(apart).ok()?) {
            let entry = table.entries.checked_add(index.checked_mul(fields.entry_bytes)?)?;
            let number =
                |field: Field| probe.reader.number(entry, field).and_then(|raw| usize::try_from(raw).ok());
            let (offset, saved) = (number(fields.sp_offset)?, number(fields.bp_offset)?);
            let (base, saved_from) = (number(fields.sp_register)?, number(fields.bp_register)?);
            if offset == 8 && saved_from == 0 && base != 0 {
                *sp.get_mut(base)? += 1;
            }
            if saved == 0xfff0 && saved_from != 0 {
                *previous_sp.get_mut(saved_from)? += 1;
            }
        }
        let most = |counts: [u32; 16]| {
            let (number, count) = (0_u64..).zip(counts).max_by_key(|(_, count)| *count)?;
            (count > 0).then_some(number)
        };
        Some(Self { sp: most(sp)?, previous_sp: most(previous_sp)? })
    }
}

/// The same tables of every module.
fn tables_of_modules(probe: &Probe, modules: &Modules) -> Option<Vec<Table>> {
    let module = |path: &str| probe.field("module", path);
    let (count, addresses, entries) =
        (module("arch.num_orcs")?, module("arch.orc_unwind_ip")?, module("arch.orc_unwind")?);
    let table = |(index, structure): (usize, &u64)| {
        let (start, bytes, _) = modules.areas.iter().find(|(start, _, of)| {
            *of == index && modules.all.get(index).is_some_and(|module| module.address == *start)
        })?;
        Some(Table {
            text: *start..start.saturating_add(*bytes),
            addresses: probe.reader.pointer(*structure, addresses)?,
            entries: probe.reader.pointer(*structure, entries)?,
            count: probe.reader.number(*structure, count)?.min(ENTRIES_MAX),
        })
    };
    Some(modules.structures.iter().enumerate().filter_map(table).collect())
}
