use super::{health, processors::idle_times};
use crate::{fact::Counter, probe::Probe, reader::Reader};

/// Bound on the length of an array of counters.
const ITEMS_MAX: usize = 1024;
const NAME_MAX: usize = 64;

/// Load averages, in hundredths.
const LOADS: [&str; 3] = ["load1", "load5", "load15"];
/// Counters of the run queues, summed over the CPUs, and their fields of `struct rq`.
const RUN_QUEUES: [(&str, &str); 4] = [
    ("context_switches", "nr_switches"),
    ("nr_running", "nr_running"),
    ("nr_uninterruptible", "nr_uninterruptible"),
    ("nr_iowait", "nr_iowait.counter"),
];
/// Counters that are one variable, or a sum over the CPUs.
const SINGLE: [&str; 6] =
    ["total_forks", "nr_threads", "nr_processes", "interrupts", "total_pages", "tainted"];
/// Processor time by kind. A kernel may have further kinds.
const PROCESSOR_TIMES: [&str; 8] = [
    "cpu_user_ns",
    "cpu_nice_ns",
    "cpu_system_ns",
    "cpu_softirq_ns",
    "cpu_irq_ns",
    "cpu_idle_ns",
    "cpu_iowait_ns",
    "cpu_steal_ns",
];

/// The names of the counters that this crate computes for every kernel. The others are those of /proc/vmstat.
pub fn computed_counters() -> impl Iterator<Item = &'static str> {
    LOADS.into_iter().chain(RUN_QUEUES.map(|(name, _)| name)).chain(SINGLE).chain(PROCESSOR_TIMES)
}

/// Reads every counter this kernel has. Those that cannot be read are absent.
pub(crate) fn read(probe: &Probe) -> Vec<Counter> {
    let mut counters = Vec::new();
    vm_counters(probe, &mut counters);
    load(probe, &mut counters);
    processor_times(probe, &mut counters);
    run_queues(probe, &mut counters);
    let values = [
        probe.word("total_forks"),
        probe.half("nr_threads").map(u64::from),
        sum(probe, "process_counts"),
        interrupts(probe),
        probe.word("_totalram_pages"),
        probe.word("tainted_mask"),
    ];
    counters.extend(SINGLE.into_iter().zip(values).filter_map(|(name, value)| Some(counter(name, value?))));
    counters.extend(softirqs(probe));
    counters.extend(health::counters(probe));
    counters
}

fn counter(name: impl Into<String>, value: u64) -> Counter {
    Counter { name: name.into(), value: value.cast_signed() }
}

/// A per-CPU word, summed.
fn sum(probe: &Probe, symbol: &str) -> Option<u64> {
    probe.symbol(symbol)?;
    Some(probe.each_cpu(symbol).filter_map(|(_, at)| probe.reader.u64(at)).fold(0, u64::wrapping_add))
}

fn words(reader: &Reader, at: u64, count: usize) -> Option<Vec<u64>> {
    let mut bytes = vec![0; count.min(ITEMS_MAX) * 8];
    reader.read(at, &mut bytes)?;
    Some(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}

/// Zone and node page counts and virtual-memory events, under the names of /proc/vmstat.
fn vm_counters(probe: &Probe, counters: &mut Vec<Counter>) {
    let names = VmNames::read(probe);
    for (symbol, names) in [("vm_zone_stat", &names.zone), ("vm_node_stat", &names.node)] {
        let values = probe.symbol(symbol).and_then(|at| words(probe.reader, at, names.len()));
        for (name, value) in names.iter().zip(values.unwrap_or_default()) {
            // While a part of a count has not been added by its CPU, the rest can be negative.
            counters.push(Counter { name: name.clone(), value: value.cast_signed().max(0) });
        }
    }
    let mut events = vec![0_u64; names.events.len()];
    for (_, at) in probe.each_cpu("vm_event_states") {
        for (event, value) in
            events.iter_mut().zip(words(probe.reader, at, names.events.len()).unwrap_or_default())
        {
            *event = event.wrapping_add(value);
        }
    }
    if probe.symbol("vm_event_states").is_some() {
        counters.extend(names.events.into_iter().zip(events).map(|(name, value)| {
            // Counted in sectors of 512 bytes, and shown in KiB.
            let shown = if matches!(name.as_str(), "pgpgin" | "pgpgout") { value / 2 } else { value };
            counter(name, shown)
        }));
    }
}

/// The names of the counters of virtual memory.
struct VmNames {
    zone: Vec<String>,
    node: Vec<String>,
    events: Vec<String>,
}

impl VmNames {
    /// The names in the kernel's own table if it agrees with its enums, else the enums' names.
    fn read(probe: &Probe) -> Self {
        let zone = enum_names(probe, "NR_FREE_PAGES", "NR_VM_ZONE_STAT_ITEMS");
        let node = enum_names(probe, "NR_ANON_MAPPED", "NR_VM_NODE_STAT_ITEMS");
        let events = enum_names(probe, "PGFAULT", "NR_VM_EVENT_ITEMS");
        let enums = Self { zone, node, events };
        Self::of_table(probe, &enums).unwrap_or(enums)
    }

    fn of_table(probe: &Probe, enums: &Self) -> Option<Self> {
        let pointers = words(probe.reader, probe.symbol("vmstat_text")?, ITEMS_MAX / 2)?;
        let image = |pointer: &u64| probe.kernel.image().contains(*pointer);
        let names: Vec<_> = pointers
            .iter()
            .take_while(|at| image(at))
            .map_while(|at| probe.reader.string(*at, NAME_MAX))
            .collect();
        let part = |first: &str, enums: &[String], proof: &str| {
            let start = names.iter().position(|name| name == first)?;
            let part = names.get(start..start + enums.len())?;
            let proven =
                enums.iter().position(|name| name == proof)? == part.iter().position(|name| name == proof)?;
            proven.then(|| part.to_vec())
        };
        Some(Self {
            zone: part("nr_free_pages", &enums.zone, "nr_mlock")?,
            node: part("nr_inactive_anon", &enums.node, "nr_shmem")?,
            events: part("pgpgin", &enums.events, "pgfault")?,
        })
    }
}

/// The names of an enum's items up to `end`, in the order of their values, in lower case.
fn enum_names(probe: &Probe, member: &str, end: &str) -> Vec<String> {
    let items = probe.types.enum_with(member);
    let count =
        items.iter().find(|(name, _)| name == end).and_then(|(_, value)| usize::try_from(*value).ok());
    let Some(count) = count.filter(|count| *count <= ITEMS_MAX) else { return Vec::new() };
    let mut names = vec![String::new(); count];
    for (name, value) in items {
        // Of two names for one value, the later one is the counter's: `NR_LRU_BASE`, then `NR_INACTIVE_ANON`.
        if let Some(slot) = usize::try_from(value).ok().and_then(|value| names.get_mut(value)) {
            *slot = name.to_lowercase();
        }
    }
    names
}

/// Load averages, in hundredths.
fn load(probe: &Probe, counters: &mut Vec<Counter>) {
    const FIXED_POINT_BITS: u32 = 11;
    let Some(loads) = probe.symbol("avenrun").and_then(|at| words(probe.reader, at, 3)) else { return };
    for (name, load) in LOADS.into_iter().zip(loads) {
        counters.push(counter(name, load.saturating_mul(100) >> FIXED_POINT_BITS));
    }
}

/// CPU time by kind, over all CPUs.
fn processor_times(probe: &Probe, counters: &mut Vec<Counter>) {
    let Some(field) = probe.field("kernel_cpustat", "cpustat") else { return };
    let items = probe.types.enum_with("CPUTIME_USER");
    let idle = idle_times(probe).map(|each| {
        let add = |sum: (u64, u64), (_, idle, waiting): &(u32, u64, u64)| {
            (sum.0.wrapping_add(*idle), sum.1.wrapping_add(*waiting))
        };
        each.iter().fold((0, 0), add)
    });
    let each: Vec<_> = probe
        .each_cpu("kernel_cpustat")
        .filter_map(|(_, at)| words(probe.reader, at.wrapping_add(field.offset_bytes), items.len()))
        .collect();
    for (name, index) in items {
        let Some(kind) = name.strip_prefix("CPUTIME_").map(str::to_lowercase) else { continue };
        let Ok(index) = usize::try_from(index) else { continue };
        if each.iter().any(|words| words.len() > index) {
            let ticks = each
                .iter()
                .filter_map(|words| words.get(index))
                .fold(0, |sum: u64, word| sum.wrapping_add(*word));
            let precise = match kind.as_str() {
                "idle" => idle.map(|(idle, _)| idle),
                "iowait" => idle.map(|(_, waiting)| waiting),
                _ => None,
            };
            counters.push(counter(format!("cpu_{kind}_ns"), precise.unwrap_or(ticks)));
        }
    }
}

/// The counters of the run queues, summed over all CPUs.
fn run_queues(probe: &Probe, counters: &mut Vec<Counter>) {
    for (name, path) in RUN_QUEUES {
        let Some(field) = probe.field("rq", path) else { continue };
        let values = probe.each_cpu("runqueues").filter_map(|(_, queue)| probe.reader.number(queue, field));
        let total = values.fold(0, u64::wrapping_add);
        // A task may fall asleep on one CPU and wake on another: 32-bit counts are meaningful only as a sum.
        let total = if field.size_bytes == 4 { total & u64::from(u32::MAX) } else { total };
        counters.push(counter(name, total));
    }
}

/// Interrupts on all CPUs, without those of the local timer.
fn interrupts(probe: &Probe) -> Option<u64> {
    let field = probe.field("kernel_stat", "irqs_sum")?;
    let each = probe.each_cpu("kstat").filter_map(|(_, at)| probe.reader.number(at, field));
    Some(each.fold(0, u64::wrapping_add))
}

/// Soft interrupts by kind, over all CPUs.
fn softirqs(probe: &Probe) -> Vec<Counter> {
    let Some(field) = probe.field("kernel_stat", "softirqs") else { return Vec::new() };
    let items = probe.types.enum_with("TIMER_SOFTIRQ");
    let of = |name: &str, index: u64| {
        let kind = name.strip_suffix("_SOFTIRQ")?.to_lowercase();
        let element = probe.types.element(field, index)?;
        let each = probe.each_cpu("kstat").filter_map(|(_, at)| probe.reader.number(at, element));
        Some(counter(format!("softirq_{kind}"), each.fold(0, u64::wrapping_add)))
    };
    items.iter().filter_map(|(name, index)| of(name, u64::try_from(*index).ok()?)).collect()
}
