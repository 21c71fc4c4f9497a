use super::dispatch;
use crate::{
    fact::{Syscall, SyscallRoute},
    kernel::Kernel,
    reader::Reader,
};

/// The targets of every system call, by both routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Syscalls {
    pub(crate) calls: Vec<Syscall>,
}

const COUNT_MAX: usize = 1024;
const DISPATCH_BYTES_MAX: usize = 64 << 10;
const NAME_MAX: usize = 64;

impl Syscalls {
    /// Reads both routes. `None` when the kernel has no readable table.
    pub(crate) fn read(kernel: &Kernel, reader: &Reader) -> Option<Self> {
        let table = table(kernel, reader)?;
        let names = Names::read(kernel, reader, table.len());
        let code = DispatchCode::read(kernel, reader);
        let mut calls = Vec::with_capacity(table.len() * 2);
        for (number, target) in (0_u32..).zip(table) {
            calls.push(call(kernel, &names, SyscallRoute::Table, number, target));
        }
        for number in (0_u32..).take(calls.len()) {
            let exit = code.as_ref().and_then(|code| dispatch::follow(&code.bytes, code.virt, number));
            calls.extend(exit.map(|exit| call(kernel, &names, SyscallRoute::Dispatch, number, exit.target)));
        }
        Some(Self { calls })
    }
}

fn call(kernel: &Kernel, names: &Names, via: SyscallRoute, number: u32, target: u64) -> Syscall {
    let expected = names.symbol(kernel, number);
    // A target can have several names; the expected one is among them if the target is correct.
    let right =
        expected.as_deref().filter(|name| kernel.symbols().names_at(target).any(|other| other == *name));
    let symbol = right.map(str::to_owned).or_else(|| kernel.label(target));
    Syscall { via, number, target, symbol, in_text: kernel.text().contains(&target), expected }
}

/// The entries of `sys_call_table`.
pub(crate) fn table(kernel: &Kernel, reader: &Reader) -> Option<Vec<u64>> {
    let at = kernel.symbol("sys_call_table")?;
    let entries = usize::try_from(kernel.place(at)?.size / 8).unwrap_or(COUNT_MAX).min(COUNT_MAX);
    let mut bytes = vec![0; entries * 8];
    reader.read(at, &mut bytes)?;
    let mut table: Vec<u64> =
        bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    // The space up to the next symbol may be longer than the table.
    while table.last() == Some(&0) {
        table.pop();
    }
    Some(table)
}

/// The code of `x64_sys_call`.
pub(crate) struct DispatchCode {
    pub(crate) virt: u64,
    pub(crate) bytes: Vec<u8>,
}

impl DispatchCode {
    /// `None` when the kernel has no such function: then the table is used.
    pub(crate) fn read(kernel: &Kernel, reader: &Reader) -> Option<Self> {
        let virt = kernel.symbol("x64_sys_call")?;
        let size = usize::try_from(kernel.place(virt)?.size).ok()?;
        let mut bytes = vec![0; size.min(DISPATCH_BYTES_MAX)];
        reader.read(virt, &mut bytes)?;
        Some(Self { virt, bytes })
    }
}

/// The names of the system calls in the tracer's description: an array of pointers, indexed by number.
struct Names(Vec<Option<String>>);

impl Names {
    fn read(kernel: &Kernel, reader: &Reader, count: usize) -> Self {
        let array = kernel.symbol("syscalls_metadata").and_then(|at| reader.u64(at)).filter(|at| *at != 0);
        let field = kernel.types().and_then(|types| types.field("syscall_metadata", "name"));
        let name = |number: u64| {
            let metadata = reader.u64(array?.checked_add(number * 8)?).filter(|at| *at != 0)?;
            reader.string(reader.pointer(metadata, field?)?, NAME_MAX)
        };
        Self((0..count as u64).map(name).collect())
    }

    /// The symbol that belongs to the call's name, if the kernel has it.
    fn symbol(&self, kernel: &Kernel, number: u32) -> Option<String> {
        let name = self.0.get(number as usize)?.as_ref()?;
        let symbol = format!("__x64_{name}");
        kernel.symbol(&symbol).is_some().then_some(symbol)
    }
}
