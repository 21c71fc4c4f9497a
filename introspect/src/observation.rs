use retrovisor_guest::{VcpuRegisters, fact::Table};

use crate::fact::{
    BpfProgram, Counter, Gate, Hook, KernelFact, LogLine, MemoryStatistics, Module, Mount, OpenFile,
    Processor, Socket, Syscall, Task, Violation, table,
};

/// What was read of a guest at one instant.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The Linux guest, if there is one.
    pub linux: Option<Linux>,
    /// Why there is none, or why only a part of it could be read.
    pub reason: Option<String>,
    /// Page statistics.
    pub memory: MemoryStatistics,
    /// The vCPUs' registers as given.
    pub registers: Vec<VcpuRegisters>,
}

/// A Linux guest at one instant.
#[derive(Clone, Debug, Default)]
pub struct Linux {
    /// The kernel.
    pub kernel: KernelFact,
    /// Every process and thread, ascending by process.
    pub tasks: Vec<Task>,
    /// Every module.
    pub modules: Vec<Module>,
    /// Every system call in the first observation of a boot; later those that lead elsewhere than then.
    pub syscalls: Vec<Syscall>,
    /// Every interrupt gate in the first observation of a boot; later those that differ from it.
    pub gates: Vec<Gate>,
    /// What asked to be called by the tracer, at an instruction, for packets.
    pub hooks: Vec<Hook>,
    /// The loaded eBPF programs.
    pub bpf_programs: Vec<BpfProgram>,
    /// The kernel log's lines that no observation had before.
    pub log: Vec<LogLine>,
    /// The kernel's counters.
    pub counters: Vec<Counter>,
    /// Invariants that do not hold. A healthy guest has none.
    pub integrity: Vec<Violation>,
    /// What each CPU counts.
    pub processors: Vec<Processor>,
    /// Every socket.
    pub sockets: Vec<Socket>,
    /// The files that processes hold open.
    pub open_files: Vec<OpenFile>,
    /// What is mounted where.
    pub mounts: Vec<Mount>,
}

impl Observation {
    /// All facts as tables, in the same order always.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![table([&self.memory])];
        if let Some(linux) = &self.linux {
            tables.extend([
                table([&linux.kernel]),
                table(&linux.tasks),
                table(&linux.modules),
                table(&linux.syscalls),
                table(&linux.gates),
                table(&linux.hooks),
                table(&linux.bpf_programs),
                table(&linux.log),
                table(&linux.counters),
                table(&linux.integrity),
                table(&linux.processors),
                table(&linux.sockets),
                table(&linux.open_files),
                table(&linux.mounts),
            ]);
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_guest_still_has_its_page_statistics() {
        let observation = Observation::default();
        let names: Vec<_> = observation.tables().iter().map(|table| table.schema.table).collect();
        assert_eq!(names, ["fact_memory"]);
        let linux = Some(Linux::default());
        let tables = Observation { linux, ..Observation::default() }.tables();
        assert_eq!(tables.len(), 15);
        assert_eq!(tables[1].rows.len(), 1);
    }
}
