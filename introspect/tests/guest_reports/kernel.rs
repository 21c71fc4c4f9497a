use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page};
use retrovisor_introspect::{Kernel, Linux};

use crate::{dump::Dump, statement::Statement};

/// Banner, time since boot, CPUs, taint.
pub(crate) fn agrees(linux: &Linux, dump: &Dump) {
    let own = &linux.kernel;
    assert_eq!(own.banner, dump.before.text("/proc/version").trim_end());
    let uptime = |statement: &Statement| -> f64 {
        statement.text("/proc/uptime").split(' ').next().unwrap().parse().unwrap()
    };
    let seconds = std::time::Duration::from_nanos(own.uptime_ns.unwrap()).as_secs_f64();
    assert!((uptime(&dump.before) - 0.1..=uptime(&dump.after) + 0.1).contains(&seconds), "{seconds}");
    let stat = dump.before.text("/proc/stat");
    let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let boot: i64 = stat.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse().unwrap();
    let tainted: u64 = dump.before.text("/proc/sys/kernel/tainted").trim().parse().unwrap();
    assert_eq!((usize::try_from(own.cpus).unwrap(), own.tainted, own.torn), (cpus, Some(tainted), false));
    assert_eq!((own.state.as_deref(), own.panic_cpu, own.oopses), (Some("running"), None, Some(0)));
    assert!((own.boot_time_s.unwrap() - boot).abs() <= 1);
    assert_eq!(own.cpus as usize, dump.registers.len());
}

/// Zeros in place of every VMCOREINFO note.
struct WithoutNotes<'v>(&'v dyn MemoryView);

impl MemoryView for WithoutNotes<'_> {
    fn layout(&self) -> &MemoryLayout {
        self.0.layout()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        self.0.read_page(gfn, into)?;
        for at in [0, 24] {
            if into[at..].starts_with(b"OSRELEASE=") {
                into.fill(0);
            }
        }
        Ok(())
    }
}

/// The same kernel is found from memory alone: by its note for crash dumps, and without one.
pub(crate) fn is_found_without_registers(kernel: &Kernel, dump: &Dump) {
    for view in [&dump.memory as &dyn MemoryView, &WithoutNotes(&dump.memory)] {
        let found = Kernel::find(view, &[]).unwrap();
        assert_eq!(
            (found.banner(), found.address_space(), found.symbol("init_task"), found.physical_base()),
            (kernel.banner(), kernel.address_space(), kernel.symbol("init_task"), kernel.physical_base())
        );
    }
}
