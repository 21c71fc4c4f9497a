use super::paths::Paths;
use crate::{
    btf::Field, fact::Task, paging::AddressSpace, printable::printable, probe::Probe, reader::Reader,
};

/// Longer command lines are cut; /proc has no such limit.
const COMMAND_LINE_MAX: u64 = 2048;

struct Fields {
    memory: Field,
    tables: Field,
    first: Field,
    end: Field,
    executable: Field,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let memory = |path: &str| probe.field("mm_struct", path);
        Some(Self {
            memory: probe.field("task_struct", "mm")?,
            tables: memory("pgd")?,
            first: memory("arg_start")?,
            end: memory("arg_end")?,
            executable: memory("exe_file")?,
        })
    }
}

/// Fills in each process's command line and executable; its threads get the same.
pub(crate) fn complete(probe: &Probe, paths: &Paths, tasks: &mut [Task]) -> Option<()> {
    let fields = Fields::of(probe)?;
    for task in tasks.iter_mut().filter(|task| task.pid == task.tgid && !task.kernel_thread) {
        let memory = probe.reader.pointer(task.address, fields.memory).filter(|memory| *memory != 0);
        let Some(memory) = memory else { continue };
        task.executable = executable(probe, &fields, paths, memory);
        task.command_line = command_line(probe, &fields, memory);
    }
    Some(())
}

fn executable(probe: &Probe, fields: &Fields, paths: &Paths, memory: u64) -> Option<String> {
    let file = probe.reader.pointer(memory, fields.executable).filter(|file| *file != 0)?;
    paths.of_file(probe, file).map(|path| path.to_string())
}

/// The arguments, separated by spaces; `None` when a page of them is not resident.
fn command_line(probe: &Probe, fields: &Fields, memory: u64) -> Option<String> {
    let reader = probe.reader;
    let first = reader.number(memory, fields.first)?;
    let length = reader.number(memory, fields.end)?.checked_sub(first)?.min(COMMAND_LINE_MAX);
    let root = reader.translate(reader.pointer(memory, fields.tables)?)?;
    let space = AddressSpace { root, levels: probe.kernel.address_space().levels };
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    Reader::new(reader.pages(), space).read(first, &mut bytes)?;
    while bytes.pop_if(|byte| *byte == 0).is_some() {}
    for byte in bytes.iter_mut().filter(|byte| **byte == 0) {
        *byte = b' ';
    }
    Some(printable(&bytes))
}
