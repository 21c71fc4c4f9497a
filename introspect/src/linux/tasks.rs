use std::collections::BTreeMap;

use super::{credentials, xarray::Entries};
use crate::{btf::Field, fact::Task, hash::IntegerMap, probe::Probe};

/// All tasks, from every view that contains some.
#[derive(Default)]
pub(crate) struct Tasks {
    pub(crate) all: Vec<Task>,
    /// The tasks that are missing from a view, with the name of the view; empty when a view could not be read
    /// completely.
    pub(crate) hidden: Vec<Hidden>,
    /// Whether every view was read completely and no CPU was changing them.
    pub(crate) comparable: bool,
}

/// A task that is missing from a view.
pub(crate) struct Hidden {
    /// Index in `all`.
    pub(crate) task: usize,
    /// The view without it.
    pub(crate) missing: &'static str,
}

const LIST: u8 = 1;
const PID_IDR: u8 = 2;
const RUN_QUEUE: u8 = 4;
/// Not one of the kernel's lists: found in the allocator's memory.
const SLAB: u8 = 128;
const VIEWS: [(u8, &str); 4] =
    [(LIST, "list"), (PID_IDR, "pid-idr"), (RUN_QUEUE, "runqueue"), (SLAB, "slab")];
/// The default `pid_max` of 64-bit kernels is 4 Mi; this bound limits the time and memory spent on a hostile guest.
const TASKS_MAX: usize = 1 << 18;
const COMM_MAX: usize = 16;
const FLAG_KERNEL_THREAD: u64 = 0x0020_0000;
const STATE_DEAD: u64 = 0x80;

/// The fields of a task in this kernel.
struct Fields {
    pid: Field,
    tgid: Field,
    comm: Field,
    tasks: Field,
    thread_node: Option<Field>,
    signal: Option<Field>,
    thread_head: Option<Field>,
    real_parent: Field,
    flags: Field,
    state: Field,
    exit_state: Field,
    credentials: credentials::Fields,
    start_time: Option<Field>,
    utime: Option<Field>,
    stime: Option<Field>,
    runtime: Option<Field>,
    voluntary: Option<Field>,
    involuntary: Option<Field>,
    memory: Field,
    on_cpu: Option<Field>,
    total_pages: Option<Field>,
    resident: Resident,
}

/// The form of `mm_struct.rss_stat`, which counts file, anonymous and shared pages.
enum Resident {
    Unknown,
    /// Plain counters (kernels up to 6.1).
    Plain(Vec<Field>),
    /// Per-CPU counters (since 6.2): count, and pointer to each CPU's part.
    PerCpu(Vec<(Field, Field)>),
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let task = |path: &str| probe.field("task_struct", path);
        Some(Self {
            pid: task("pid")?,
            tgid: task("tgid")?,
            comm: task("comm")?,
            tasks: task("tasks")?,
            thread_node: task("thread_node"),
            signal: task("signal"),
            thread_head: probe.field("signal_struct", "thread_head"),
            real_parent: task("real_parent")?,
            flags: task("flags")?,
            state: task("__state").or_else(|| task("state"))?,
            exit_state: task("exit_state")?,
            credentials: credentials::Fields::of(probe),
            start_time: task("start_boottime")
                .or_else(|| task("real_start_time"))
                .or_else(|| task("start_time")),
            utime: task("utime"),
            stime: task("stime"),
            runtime: task("se.sum_exec_runtime"),
            voluntary: task("nvcsw"),
            involuntary: task("nivcsw"),
            memory: task("mm")?,
            on_cpu: task("on_cpu"),
            total_pages: probe.field("mm_struct", "total_vm"),
            resident: Resident::of(probe),
        })
    }
}

impl Resident {
    fn of(probe: &Probe) -> Self {
        let kinds =
            ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES"].map(|kind| probe.types.enumerator(kind));
        let kinds = kinds.into_iter().flatten().filter_map(|kind| u64::try_from(kind).ok());
        if let Some(counts) = probe.field("mm_struct", "rss_stat.count") {
            return Self::Plain(kinds.filter_map(|kind| probe.types.element(counts, kind)).collect());
        }
        let Some(counters) = probe.field("mm_struct", "rss_stat") else { return Self::Unknown };
        let part = |kind: u64, path: &str| {
            let counter = probe.types.element(counters, kind)?;
            let part = probe.field("percpu_counter", path)?;
            Some(Field { offset_bytes: counter.offset_bytes + part.offset_bytes, ..part })
        };
        Self::PerCpu(kinds.filter_map(|kind| Some((part(kind, "count")?, part(kind, "counters")?))).collect())
    }

    fn pages(&self, probe: &Probe, memory: u64) -> u64 {
        let number = |field: Field| probe.reader.number(memory, field).map_or(0, u64::cast_signed);
        let sum = match self {
            Self::Unknown => 0,
            Self::Plain(counts) => {
                counts.iter().map(|count| number(*count).max(0)).fold(0, i64::saturating_add)
            }
            Self::PerCpu(counters) => {
                let of_cpus = |counter: Field| {
                    let Some(parts) = probe.reader.pointer(memory, counter) else { return 0 };
                    let part =
                        |offset: u64| probe.reader.i32(parts.wrapping_add(offset)).map_or(0, i64::from);
                    probe.cpu_offsets().iter().map(|(_, offset)| part(*offset)).sum::<i64>()
                };
                let sums = counters
                    .iter()
                    .map(|(count, parts)| number(*count).saturating_add(of_cpus(*parts)).max(0));
                sums.fold(0, i64::saturating_add)
            }
        };
        sum.cast_unsigned()
    }
}

impl Tasks {
    /// Reads every task of the guest. `None` when they cannot be read.
    pub(crate) fn read(probe: &Probe) -> Option<Self> {
        let fields = Fields::of(probe)?;
        let mut seen = BTreeMap::new();
        let list = from_list(probe, &fields, &mut seen);
        let idr = from_pid_idr(probe, &mut seen).unwrap_or(false);
        from_run_queues(probe, &mut seen);
        let mut comms = IntegerMap::default();
        let mut tasks: Vec<(u8, Task)> = seen
            .into_iter()
            .filter_map(|(address, views)| {
                Some((views, read_task(probe, &fields, address, views, &mut comms)?))
            })
            .collect();
        tasks.sort_by_key(|(_, task)| (task.tgid, task.pid, task.address));
        // During a fork or an exit the views differ between two updates; the lock is held then.
        let locked = lock_is_held(probe);
        if locked || !list || !idr {
            probe.mark_torn();
        }
        let comparable = !locked && list && idr;
        let lacks = |views: u8, task: &Task| match () {
            () if !comparable || matches!(task.state, 'X') => None,
            () if views & LIST == 0 => Some("list"),
            () if views & PID_IDR == 0 => Some("pid-idr"),
            () => None,
        };
        let hidden = tasks
            .iter()
            .enumerate()
            .filter_map(|(at, (views, task))| Some(Hidden { task: at, missing: lacks(*views, task)? }))
            .collect();
        Some(Self { all: tasks.into_iter().map(|(_, task)| task).collect(), hidden, comparable })
    }

    /// Adds a living task that none of the kernel's lists contains.
    pub(crate) fn add_unlisted(&mut self, probe: &Probe, address: u64) {
        let task = Fields::of(probe)
            .and_then(|fields| read_task(probe, &fields, address, SLAB, &mut IntegerMap::default()));
        if let Some(task) = task {
            self.hidden.push(Hidden { task: self.all.len(), missing: "list" });
            self.all.push(task);
        }
    }
}

/// Follows `init_task.tasks`, and each process's threads. Returns whether every list was complete.
fn from_list(probe: &Probe, fields: &Fields, seen: &mut BTreeMap<u64, u8>) -> bool {
    let Some(init) = probe.symbol("init_task") else { return false };
    let processes = probe.reader.list(init.wrapping_add(fields.tasks.offset_bytes), TASKS_MAX);
    let mut whole = processes.whole;
    for link in processes.links {
        let leader = link.wrapping_sub(fields.tasks.offset_bytes);
        *seen.entry(leader).or_default() |= LIST;
        let (Some(node), Some(signal), Some(head)) = (fields.thread_node, fields.signal, fields.thread_head)
        else {
            continue;
        };
        let Some(signal) = probe.reader.pointer(leader, signal).filter(|signal| *signal != 0) else {
            whole = false;
            continue;
        };
        let rest = TASKS_MAX.saturating_sub(seen.len());
        let threads = probe.reader.list(signal.wrapping_add(head.offset_bytes), rest);
        whole &= threads.whole;
        for link in threads.links {
            *seen.entry(link.wrapping_sub(node.offset_bytes)).or_default() |= LIST;
        }
    }
    whole
}

/// Every task of a pid in the first namespace. Returns whether the tree was complete.
fn from_pid_idr(probe: &Probe, seen: &mut BTreeMap<u64, u8>) -> Option<bool> {
    let head = probe.number("init_pid_ns", "pid_namespace", "idr.idr_rt.xa_head")?;
    // The first list of a pid has the thread with that id; the others have its group and session.
    let first = probe.field("pid", "tasks")?;
    let links = probe.field("task_struct", "pid_links")?;
    let entries = Entries::walk(probe, head)?;
    let whole = entries.whole && entries.pointers.len() <= TASKS_MAX;
    for pid in entries.pointers.into_iter().take(TASKS_MAX) {
        match probe.reader.pointer(pid, first) {
            Some(0) => (),
            Some(link) => *seen.entry(link.wrapping_sub(links.offset_bytes)).or_default() |= PID_IDR,
            None => return Some(false),
        }
    }
    Some(whole)
}

/// The task that each CPU runs and those in its queue of the fair class.
fn from_run_queues(probe: &Probe, seen: &mut BTreeMap<u64, u8>) {
    let Some(current) = probe.field("rq", "curr") else { return };
    let queued = probe.field("rq", "cfs_tasks").zip(probe.field("task_struct", "se.group_node"));
    for (_, queue) in probe.each_cpu("runqueues") {
        let mut see = |task: u64| *seen.entry(task).or_default() |= RUN_QUEUE;
        if let Some(task) = probe.reader.pointer(queue, current).filter(|task| *task != 0) {
            see(task);
        }
        if let Some((head, node)) = queued {
            let queued = probe.reader.list(queue.wrapping_add(head.offset_bytes), TASKS_MAX);
            queued.links.iter().for_each(|link| see(link.wrapping_sub(node.offset_bytes)));
        }
    }
}

/// Whether a CPU is changing the task lists at this instant (`tasklist_lock` held for writing).
fn lock_is_held(probe: &Probe) -> bool {
    probe.half("tasklist_lock").is_some_and(|lock| lock & 0xff != 0)
}

/// Reads one task; `None` for other data, and for the idle tasks (pid 0), which no list contains.
fn read_task(
    probe: &Probe,
    fields: &Fields,
    address: u64,
    views: u8,
    comms: &mut IntegerMap<u64, (i32, String)>,
) -> Option<Task> {
    let reader = probe.reader;
    let number = |field: Field| reader.number(address, field);
    let optional = |field: Option<Field>| field.and_then(number).unwrap_or(0);
    let signed = |field: Field| number(field).and_then(|raw| u32::try_from(raw).ok()).map(u32::cast_signed);
    let pid = signed(fields.pid)?;
    if pid == 0 {
        return None;
    }
    let Some(exit_state) = number(fields.exit_state) else {
        probe.mark_torn();
        return None;
    };
    let state = number(fields.state).unwrap_or(0);
    let parent = reader.pointer(address, fields.real_parent).unwrap_or(0);
    let (parent_tgid, parent_comm) =
        comms.entry(parent).or_insert_with(|| name_of(probe, fields, parent)).clone();
    let credentials = fields.credentials.read(probe, address);
    let memory = reader.pointer(address, fields.memory).filter(|memory| *memory != 0);
    let (utime_ns, stime_ns) =
        scaled(optional(fields.utime), optional(fields.stime), optional(fields.runtime));
    let dead = views == RUN_QUEUE && state & STATE_DEAD != 0;
    Some(Task {
        pid,
        tgid: signed(fields.tgid)?,
        ppid: parent_tgid,
        comm: reader.string(address.checked_add(fields.comm.offset_bytes)?, COMM_MAX)?,
        parent_comm,
        state: if dead { 'X' } else { state_letter(state, exit_state) },
        uid: credentials.uid,
        gid: credentials.gid,
        euid: credentials.euid,
        egid: credentials.egid,
        capabilities: credentials.capabilities,
        start_time_ns: optional(fields.start_time),
        utime_ns,
        stime_ns,
        voluntary_switches: optional(fields.voluntary),
        involuntary_switches: optional(fields.involuntary),
        rss_pages: memory.map_or(0, |memory| fields.resident.pages(probe, memory)),
        vsize_pages: memory
            .zip(fields.total_pages)
            .and_then(|(at, field)| reader.number(at, field))
            .unwrap_or(0),
        kernel_thread: number(fields.flags).unwrap_or(0) & FLAG_KERNEL_THREAD != 0,
        on_cpu: optional(fields.on_cpu) != 0,
        address,
        views: VIEWS
            .iter()
            .filter(|(bit, _)| views & bit != 0)
            .map(|(_, name)| *name)
            .collect::<Vec<_>>()
            .join("+"),
        // Fields that need more than the task itself are filled in later.
        command_line: None,
        executable: None,
        waits_in: None,
    })
}

/// A parent's process id and name.
fn name_of(probe: &Probe, fields: &Fields, task: u64) -> (i32, String) {
    let tgid = probe.reader.number(task, fields.tgid).and_then(|raw| u32::try_from(raw).ok());
    let comm = task.checked_add(fields.comm.offset_bytes).and_then(|at| probe.reader.string(at, COMM_MAX));
    (tgid.map_or(0, u32::cast_signed), comm.unwrap_or_default())
}

/// The tick-sampled times, scaled to the precise run time as in /proc.
fn scaled(utime: u64, stime: u64, runtime: u64) -> (u64, u64) {
    if runtime == 0 {
        return (utime, stime);
    }
    if stime == 0 {
        return (runtime, 0);
    }
    let total = u128::from(utime) + u128::from(stime);
    let system = u128::from(stime) * u128::from(runtime) / total;
    let system = u64::try_from(system).unwrap_or(runtime).min(runtime);
    (runtime - system, system)
}

fn state_letter(state: u64, exit_state: u64) -> char {
    const UNINTERRUPTIBLE_NO_LOAD: u64 = 0x402;
    if state & UNINTERRUPTIBLE_NO_LOAD == UNINTERRUPTIBLE_NO_LOAD && exit_state == 0 {
        return 'I';
    }
    match (state | exit_state) & 0x7f {
        0 => 'R',
        1 => 'S',
        2..4 => 'D',
        4..8 => 'T',
        8..0x10 => 't',
        0x10..0x20 => 'X',
        0x20..0x40 => 'Z',
        _ => 'P',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_the_letters_of_proc() {
        let letters = [(0, 0), (1, 0), (2, 0), (0x402, 0), (0x102, 0), (0, 0x20), (0x80, 0x10), (4, 0)];
        let letters: String = letters.map(|(state, exit)| state_letter(state, exit)).iter().collect();
        assert_eq!(letters, "RSDIDZXT");
    }

    #[test]
    fn times_are_scaled_without_overflow() {
        assert_eq!(scaled(4, 12, 32), (8, 24));
        assert_eq!(scaled(4, 0, 9), (9, 0));
        assert_eq!(scaled(u64::MAX, u64::MAX, u64::MAX), (u64::MAX / 2 + 1, u64::MAX / 2));
        assert_eq!(scaled(3, 4, 0), (3, 4));
    }
}
