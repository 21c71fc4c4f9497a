use std::sync::Arc;

use retrovisor_guest::VcpuRegisters;

use crate::{
    Kernel,
    fact::{Gate, Hook, KernelFact, MemoryStatistics, Syscall, SyscallRoute, Task, Violation, ViolationKind},
    facts::Linux,
    linux::{
        bpf,
        code::{Code, Owner},
        files::Files,
        forgeries::Forgeries,
        gates,
        health::{Health, taint_letters},
        identity::BootIdentity,
        kprobes::Kprobes,
        log::SeenLines,
        module_memory,
        module_symbols::ModuleSymbols,
        modules::Modules,
        mounts,
        netfilter::PacketHooks,
        operations,
        patching::Lawful,
        paths::Paths,
        programs,
        protections::{self, Controls},
        sockets,
        stacks::{Registers as UnwindRegisters, Stacks},
        syscalls::Syscalls,
        task_slabs::TaskSlabs,
        tasks::Tasks,
        text::{Change, Part, TextChanges, TextReference},
        time::Clock,
        tracers::Tracers,
    },
    probe::Probe,
    reader::Reader,
    roots,
};

/// One boot of one kernel, with the references from its first observations; later observations are compared with them.
pub(crate) struct Boot {
    pub(crate) kernel: Arc<Kernel>,
    identity: BootIdentity,
    /// Whether an observation showed that the kernel had finished booting.
    has_run: bool,
    syscalls: Option<Syscalls>,
    text: Option<TextReference>,
    gates: Option<Vec<Gate>>,
    controls: Controls,
    forgeries: Forgeries,
    task_slabs: TaskSlabs,
    unwind_registers: Option<UnwindRegisters>,
    seen_lines: SeenLines,
    pub(crate) module_symbols: ModuleSymbols,
}

impl Boot {
    pub(crate) fn new(kernel: Arc<Kernel>, reader: &Reader) -> Self {
        let identity =
            Probe::new(&kernel, reader).map(|probe| BootIdentity::read(&probe)).unwrap_or_default();
        Self {
            kernel,
            identity,
            has_run: false,
            syscalls: None,
            text: None,
            gates: None,
            controls: Controls::new(),
            forgeries: Forgeries::default(),
            task_slabs: TaskSlabs::default(),
            unwind_registers: None,
            seen_lines: SeenLines::default(),
            module_symbols: ModuleSymbols::default(),
        }
    }

    /// Whether this boot was seen running. `true` where that cannot be determined.
    pub(crate) fn has_run(&self) -> bool {
        self.has_run
    }

    /// Whether a memory is of this boot.
    pub(crate) fn is_in(&self, reader: &Reader) -> bool {
        self.kernel.is_still_in(reader.pages())
            && Probe::new(&self.kernel, reader)
                .is_none_or(|probe| self.identity.is_same_boot(&BootIdentity::read(&probe)))
    }

    /// Reads all facts. Sets the fields of `memory` about the kernel's code.
    pub(crate) fn observe(
        &mut self,
        reader: &Reader,
        vcpus: &[VcpuRegisters],
        memory: &mut MemoryStatistics,
    ) -> Linux {
        let kernel = Arc::clone(&self.kernel);
        let (syscalls, mut integrity) = self.syscalls(&kernel, reader);
        let Some(probe) = Probe::new(&kernel, reader) else {
            self.has_run = true;
            return Linux { kernel: kernel_fact(&kernel, vcpus), syscalls, integrity, ..Linux::default() };
        };
        let clock = Clock::read(&probe);
        let mut tasks = Tasks::read(&probe).unwrap_or_default();
        let mut modules = Modules::read(&probe).unwrap_or_default();
        // Before it starts the first process, a kernel changes its code and tables in ways that no table records.
        let running = is_running(&probe);
        self.has_run |= running;
        if running {
            self.task_slabs.find_unlisted(&probe, &mut tasks);
            module_memory::find_unlisted(&probe, &mut modules);
        }
        let mut symbols = std::mem::take(&mut self.module_symbols);
        symbols.update(&probe, &modules);
        let code = Code::new(&probe, &modules, &symbols);
        let bpf_programs = bpf::programs(&code).unwrap_or_default();
        let (mut gates, mut hooks) = (Vec::new(), Vec::new());
        if running {
            let vcpus = &roots::of_kernel(vcpus, &kernel, reader.pages());
            integrity.extend(hidden_tasks(&tasks));
            integrity.extend(hidden_modules(&modules));
            integrity.extend(protections::control_registers(vcpus, &mut self.controls));
            integrity.extend(protections::system_call_entry(&code, vcpus));
            integrity.extend(self.forgeries.check(&probe, &tasks.all, clock.uptime_ns));
            integrity.extend(operations::redirected(&code));
            gates = self.gates(&code, vcpus, &mut integrity);
            hooks = self.hooks_and_text(&code, memory, &mut integrity);
        } else {
            integrity.clear();
        }
        self.module_symbols = symbols;
        let mut tasks = tasks.all;
        if let Some(stacks) = Stacks::new(&probe, &modules, &mut self.unwind_registers) {
            stacks.complete(&mut tasks, &self.module_symbols);
        }
        let (mut files, mut mounts) = (Files::default(), Vec::new());
        if let Some(paths) = Paths::new(&probe) {
            programs::complete(&probe, &paths, &mut tasks);
            files = Files::read(&probe, &paths, &tasks).unwrap_or_default();
            mounts = mounts::read(&probe, &paths, &tasks).unwrap_or_default();
        }
        let sockets = sockets::read(&probe, &files).unwrap_or_default();
        let log = self.seen_lines.read_new(&probe).unwrap_or_default();
        let health = Health::read(&probe);
        let tainted = probe.word("tainted_mask");
        let kernel = KernelFact {
            boot: running.then(|| self.identity.name()).flatten(),
            state: health.state,
            panic_cpu: health.panic_cpu,
            oopses: health.oopses,
            taints: tainted.map(taint_letters),
            uptime_ns: clock.uptime_ns,
            boot_time_s: clock.boot_time_s,
            jiffies: probe.word("jiffies_64").or_else(|| probe.word("jiffies")),
            tainted,
            cpus: probe.half("__num_online_cpus").unwrap_or(0),
            torn: probe.is_torn(),
            ..kernel_fact(&kernel, vcpus)
        };
        let mut linux = Linux {
            kernel,
            tasks,
            modules: modules.all,
            syscalls,
            gates,
            hooks,
            bpf_programs,
            log,
            integrity,
            sockets,
            open_files: files.all,
            mounts,
            ..Linux::default()
        };
        linux.read_independent(&probe);
        linux
    }

    /// Drops what is compared between consecutive observations; the references stay.
    pub(crate) fn forget_last(&mut self) {
        self.forgeries.forget();
        self.task_slabs.forget();
    }

    /// The gates to report: all in the first observation, later those that differ from it.
    fn gates(&mut self, code: &Code, vcpus: &[VcpuRegisters], integrity: &mut Vec<Violation>) -> Vec<Gate> {
        let Some(now) = gates::read(code) else { return Vec::new() };
        integrity.extend(gates::redirected(code, vcpus, &now, self.gates.as_deref()));
        let Some(first) = &self.gates else {
            self.gates = Some(now.clone());
            return now;
        };
        let changed = now.into_iter().zip(first).filter(|(now, first)| now != *first);
        changed.map(|(now, _)| now).collect()
    }

    /// The registered hooks. Adds the violations of hooks and of changed code to `integrity`.
    fn hooks_and_text(
        &mut self,
        code: &Code,
        memory: &mut MemoryStatistics,
        integrity: &mut Vec<Violation>,
    ) -> Vec<Hook> {
        let packets = PacketHooks::read(code).unwrap_or_default();
        let lawful = Lawful {
            code,
            tracers: Tracers::read(code).unwrap_or_default(),
            kprobes: Kprobes::read(code).unwrap_or_default(),
        };
        let reference = self.text.get_or_insert_with(|| TextReference::take(code.probe));
        let changes = reference.compare(&lawful);
        memory.kernel_text_pages = reference.frame_count();
        memory.kernel_text_pages_changed = changes.frames;
        integrity.extend(text_changes(code, &changes));
        let Lawful { tracers, kprobes, .. } = lawful;
        integrity.extend(tracers.violations);
        integrity.extend(kprobes.violations);
        integrity.extend(packets.violations);
        [tracers.hooks, kprobes.hooks, packets.hooks].concat()
    }

    /// The system calls to report, and the redirected ones.
    fn syscalls(&mut self, kernel: &Kernel, reader: &Reader) -> (Vec<Syscall>, Vec<Violation>) {
        let Some(now) = Syscalls::read(kernel, reader) else { return Default::default() };
        let Some(first) = &self.syscalls else {
            let violations = now.calls.iter().filter_map(|call| redirected(kernel, call, None)).collect();
            self.syscalls = Some(now.clone());
            return (now.calls, violations);
        };
        let before = |call: &Syscall| {
            first.calls.iter().find(|first| (first.via, first.number) == (call.via, call.number))
        };
        let mut calls = Vec::new();
        let mut violations = Vec::new();
        for (at, call) in now.calls.iter().enumerate() {
            let first = first
                .calls
                .get(at)
                .filter(|first| (first.via, first.number) == (call.via, call.number))
                .or_else(|| before(call));
            violations.extend(redirected(kernel, call, first));
            if first.is_none_or(|first| first.target != call.target) {
                let expected = call.expected.clone().or_else(|| first.and_then(|first| first.symbol.clone()));
                calls.push(Syscall { expected, ..call.clone() });
            }
        }
        (calls, violations)
    }
}

/// The facts that come from the kernel's identity and from the registers.
fn kernel_fact(kernel: &Kernel, vcpus: &[VcpuRegisters]) -> KernelFact {
    let first = vcpus.first();
    KernelFact {
        release: kernel.release().to_owned(),
        banner: kernel.banner().to_owned(),
        virtual_slide: kernel.virtual_slide(),
        physical_base: kernel.physical_base(),
        page_levels: kernel.address_space().levels,
        cr0: first.map(|vcpu| vcpu.cr0),
        cr4: first.map(|vcpu| vcpu.cr4),
        efer: first.map(|vcpu| vcpu.efer),
        idt_base: first.map(|vcpu| vcpu.idt.base),
        ..KernelFact::default()
    }
}

/// Whether the kernel has finished booting; `true` where that cannot be determined.
fn is_running(probe: &Probe) -> bool {
    let running = probe.types.enumerator("SYSTEM_RUNNING");
    let state = probe.half("system_state").map(i64::from);
    state.zip(running).is_none_or(|(state, running)| state >= running)
}

/// A violation if a system call leads out of the kernel's text, or to another symbol than its expected one, or, without
/// an expected symbol, elsewhere than in the first observation.
fn redirected(kernel: &Kernel, call: &Syscall, first: Option<&Syscall>) -> Option<Violation> {
    let by_name = call.expected.as_ref().filter(|name| call.symbol.as_ref() != Some(name));
    let moved = first.filter(|first| first.target != call.target && call.expected.is_none());
    if call.in_text && by_name.is_none() && moved.is_none() {
        return None;
    }
    let symbol = call.expected.clone().or_else(|| first.and_then(|first| first.symbol.clone()));
    let name = symbol.as_deref().and_then(|symbol| symbol.strip_prefix("__x64_sys_"));
    let expected = symbol.as_ref().map_or("a function of the kernel".to_owned(), |symbol| {
        kernel.symbol(symbol).map_or_else(|| symbol.clone(), |address| format!("{address:#018x} {symbol}"))
    });
    let found = call
        .symbol
        .as_ref()
        .map_or_else(|| format!("{:#018x}", call.target), |symbol| format!("{:#018x} {symbol}", call.target));
    let place = match call.via {
        SyscallRoute::Table => "entry of sys_call_table",
        SyscallRoute::Dispatch => "branch in x64_sys_call",
    };
    let wrong = if call.in_text { "leads to another function" } else { "leads out of the kernel's code" };
    Some(Violation {
        kind: ViolationKind::SyscallRedirected,
        object: name.map_or_else(|| format!("syscall {}", call.number), str::to_owned),
        symbol,
        detail: format!("the {place} for call {} {wrong}", call.number),
        expected,
        found,
    })
}

fn hidden_tasks(tasks: &Tasks) -> impl Iterator<Item = Violation> {
    tasks.hidden.iter().filter_map(|hidden| {
        let Task { pid, comm, views, .. } = tasks.all.get(hidden.task)?;
        Some(Violation {
            kind: ViolationKind::HiddenTask,
            object: format!("task {pid} ({comm})"),
            symbol: None,
            detail: format!("a view of the tasks lacks it: {}", hidden.missing),
            expected: hidden.missing.to_owned(),
            found: views.clone(),
        })
    })
}

fn hidden_modules(modules: &Modules) -> impl Iterator<Item = Violation> {
    modules.hidden.iter().filter_map(|(at, missing)| {
        let module = modules.all.get(*at)?;
        Some(Violation {
            kind: ViolationKind::HiddenModule,
            object: format!("module {}", module.name),
            symbol: None,
            detail: format!("a view of the modules lacks it: {missing}"),
            expected: (*missing).to_owned(),
            found: module.views.clone(),
        })
    })
}

/// One violation for each symbol whose code or constants changed.
fn text_changes(code: &Code, changes: &TextChanges) -> Vec<Violation> {
    let symbol = |change: &Change| match code.owner(change.virt) {
        Owner::Kernel => code.probe.kernel.place(change.virt).map(|place| place.name.to_owned()),
        Owner::Module(module) => {
            let symbol = code.symbols.place(change.virt).map(|(name, _)| name.to_owned());
            let module = code.modules.all.get(module).map(|module| module.name.as_str()).unwrap_or_default();
            Some(symbol.map_or_else(|| format!("[{module}]"), |symbol| format!("{symbol} [{module}]")))
        }
        Owner::Nobody => None,
    };
    changes
        .unexplained
        .chunk_by(|one, other| one.part == other.part && symbol(one) == symbol(other))
        .filter_map(|chunk| {
            let (first, more) = chunk.split_first()?;
            let symbol = symbol(first);
            let more =
                if more.is_empty() { String::new() } else { format!(" and {} places more", more.len()) };
            let (kind, what) = match first.part {
                Part::Text => (ViolationKind::TextChanged, "code"),
                Part::Rodata => (ViolationKind::RodataChanged, "constant data"),
            };
            Some(Violation {
                kind,
                object: symbol.clone().unwrap_or_else(|| format!("kernel {what}")),
                symbol,
                detail: format!("{} bytes of {what} at {}{more}", first.now.len(), code.describe(first.virt)),
                expected: hexadecimal(&first.before),
                found: match (first.part, word_at(code, first.virt)) {
                    // For a changed pointer, its target tells more than its bytes.
                    (Part::Rodata, Some(target)) if code.label(target).is_some() => code.describe(target),
                    _ => hexadecimal(&first.now),
                },
            })
        })
        .collect()
}

/// The aligned 8-byte word around an address.
fn word_at(code: &Code, address: u64) -> Option<u64> {
    code.probe.reader.u64(address & !7)
}

/// Bytes as `e8 00 11`; of a long run only the first few.
fn hexadecimal(bytes: &[u8]) -> String {
    const SHOWN: usize = 16;
    let shown: Vec<_> = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    shown.join(" ") + if bytes.len() > SHOWN { " …" } else { "" }
}
