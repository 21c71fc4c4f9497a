use super::time::Clock;
use crate::{btf::Field, fact::Processor, probe::Probe};

/// The counters of each possible CPU.
pub(crate) fn read(probe: &Probe) -> Vec<Processor> {
    let idle = idle_times(probe).unwrap_or_default();
    let online = probe.symbol("__cpu_online_mask");
    let queue = |path: &str| probe.field("rq", path);
    let (switches, running, current) = (queue("nr_switches"), queue("nr_running"), queue("curr"));
    let (pid, interrupts) = (probe.field("task_struct", "pid"), probe.field("kernel_stat", "irqs_sum"));
    let times = probe.field("kernel_cpustat", "cpustat");
    let kind = |name: &str| {
        let index = u64::try_from(probe.types.enumerator(name)?).ok()?;
        probe.types.element(times?, index)
    };
    let kinds = ["USER", "NICE", "SYSTEM", "IDLE", "IOWAIT", "IRQ", "SOFTIRQ", "STEAL"];
    let kinds = kinds.map(|name| kind(&format!("CPUTIME_{name}")));
    let of_cpu = |(cpu, offset): &(u32, u64)| {
        let at = |symbol: &str| probe.symbol(symbol).map(|symbol| symbol.wrapping_add(*offset));
        let number = |base: Option<u64>, field: Option<Field>| probe.reader.number(base?, field?);
        let time = |kind: usize| number(at("kernel_cpustat"), kinds[kind]).unwrap_or(0);
        let queue = at("runqueues");
        let set = online.and_then(|mask| probe.reader.u8(mask + u64::from(cpu / 8)));
        let idle = idle.iter().find(|(of, ..)| of == cpu);
        let current = current.and_then(|current| probe.reader.pointer(queue?, current));
        let pid = number(current, pid).and_then(|pid| u32::try_from(pid).ok()).map(u32::cast_signed);
        Processor {
            cpu: *cpu,
            online: set.is_some_and(|byte| byte >> (cpu % 8) & 1 == 1),
            user_ns: time(0),
            nice_ns: time(1),
            system_ns: time(2),
            idle_ns: idle.map_or_else(|| time(3), |(_, idle, _)| *idle),
            iowait_ns: idle.map_or_else(|| time(4), |(.., waiting)| *waiting),
            irq_ns: time(5),
            softirq_ns: time(6),
            steal_ns: time(7),
            context_switches: number(queue, switches).unwrap_or(0),
            interrupts: number(at("kstat"), interrupts).unwrap_or(0),
            running: number(queue, running).unwrap_or(0),
            current_pid: pid.unwrap_or(0),
            watchdog_touched: at("watchdog_touch_ts").and_then(|at| probe.reader.u64(at)),
        }
    };
    probe.cpu_offsets().iter().map(of_cpu).collect()
}

/// For each CPU: idle time, and the part of it in which a task waited for a device, as in /proc/stat: for a CPU that
/// sleeps without ticks, up to now. `None` when idle CPUs keep ticking.
pub(crate) fn idle_times(probe: &Probe) -> Option<Vec<(u32, u64, u64)>> {
    // The bit in `flags`, which since 6.9 replaces separate fields.
    const IDLE_ACTIVE: u64 = 1 << 2;
    probe.half("tick_nohz_active").filter(|active| *active != 0)?;
    let now = Clock::read(probe).monotonic_ns?;
    let field = |path: &str| probe.field("tick_sched", path);
    let number = |cpu: u64, field: Field| probe.reader.number(cpu, field);
    let (flag, flags) = (field("idle_active"), field("flags"));
    let (entry, idle, waiting) =
        (field("idle_entrytime")?, field("idle_sleeptime")?, field("iowait_sleeptime")?);
    let waiters = probe.field("rq", "nr_iowait.counter")?;
    let (ticks, queues) = (probe.symbol("tick_cpu_sched")?, probe.symbol("runqueues")?);
    let of_cpu = |(cpu, offset): &(u32, u64)| {
        let own = ticks.wrapping_add(*offset);
        let active = match (flag, flags) {
            (Some(flag), _) => number(own, flag)? != 0,
            (None, flags) => number(own, flags?)? & IDLE_ACTIVE != 0,
        };
        let since = if active { now.saturating_sub(number(own, entry)?) } else { 0 };
        let waits = number(queues.wrapping_add(*offset), waiters)? != 0;
        let (idle, waiting) = (number(own, idle)?, number(own, waiting)?);
        let (more_idle, more_waiting) = if waits { (0, since) } else { (since, 0) };
        Some((*cpu, idle.wrapping_add(more_idle), waiting.wrapping_add(more_waiting)))
    };
    Some(probe.cpu_offsets().iter().filter_map(of_cpu).collect())
}
