//! Against the guest's own word: what is read of a real guest's memory must be what the guest says of itself.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a test of numbers that are known to be small"
)]

mod live;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::{Duration, Instant},
};

use live::Guest;
use retrovisor_guest::{
    Gfn, Gpa, MemoryError, MemoryLayout, MemoryView, Page, PageToken, VcpuRegisters, is_zero,
};
use retrovisor_introspect::{
    Introspector, Kernel, Linux, OwnerMap,
    fact::{Violation, ViolationKind},
};

/// What the guest printed of itself.
struct Truth {
    uptime_s: f64,
    /// Thread → (process, name, parent, start in hundredths of a second, CPU time in hundredths).
    tasks: BTreeMap<i32, (i32, String, i32, u64, u64)>,
    uids: BTreeMap<i32, u32>,
    vmstat: BTreeMap<String, i64>,
    switches: i64,
    /// In hundredths of a second, over all CPUs.
    idle: i64,
    forks: i64,
}

impl Truth {
    fn ask(guest: &mut Guest) -> Self {
        let uptime = guest.run("cat /proc/uptime");
        let stat = guest.run("cat /proc/[0-9]*/task/[0-9]*/stat 2>/dev/null");
        let mut tasks = BTreeMap::new();
        // A thread's file does not name its process: the directories do.
        let threads = guest.run("for t in /proc/[0-9]*/task/[0-9]*; do echo $t; done");
        let process_of: BTreeMap<i32, i32> = threads
            .lines()
            .filter_map(|line| {
                let mut parts = line.split('/').filter_map(|part| part.parse().ok());
                let process = parts.next()?;
                Some((parts.next()?, process))
            })
            .collect();
        for line in stat.lines() {
            let (Some(open), Some(close)) = (line.find('('), line.rfind(')')) else { continue };
            let pid: i32 = line[..open].trim().parse().unwrap();
            let rest: Vec<&str> = line[close + 2..].split(' ').collect();
            let number = |at: usize| rest[at].parse::<u64>().unwrap();
            let Some(process) = process_of.get(&pid) else { continue };
            let parent = i32::try_from(number(1)).unwrap();
            tasks.insert(
                pid,
                (*process, line[open + 1..close].to_owned(), parent, number(19), number(11) + number(12)),
            );
        }
        let status = guest.run("grep -E '^(Pid|Uid):' /proc/[0-9]*/status 2>/dev/null");
        let mut uids = BTreeMap::new();
        for line in status.lines().filter(|line| line.contains("Uid:")) {
            let pid = line.split('/').nth(2).unwrap().parse().unwrap();
            uids.insert(pid, line.split_whitespace().nth(1).unwrap().parse().unwrap());
        }
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.split(' ').next()?.parse().ok()?))
        };
        let vmstat = guest.run("cat /proc/vmstat").lines().filter_map(pair).collect();
        let stat = guest.run("cat /proc/stat");
        let idle = stat.split_whitespace().nth(4).unwrap().parse().unwrap();
        let all: BTreeMap<String, i64> = stat.lines().filter_map(pair).collect();
        let uptime_s = uptime.split(' ').next().unwrap().parse().unwrap();
        Self { uptime_s, tasks, uids, vmstat, switches: all["ctxt"], idle, forks: all["processes"] }
    }
}

#[test]
fn a_real_guest_is_read_as_it_says_of_itself() {
    let Some(mut guest) = Guest::start() else { return };
    let mut from_the_start = boot_is_no_violation(&mut guest);
    guest.wait_for_shell();
    let mut introspector = Introspector::new();

    let before = Truth::ask(&mut guest);
    let modules = guest.run("cat /proc/modules");
    let symbols = guest.run("grep -v '\\[' /proc/kallsyms | cut -d ' ' -f 1,3 | gzip -c | tail -c 8 | hexdump -v -e '8/1 \"%02x\"'");
    let version = guest.run("cat /proc/version");
    let log = guest.run("dmesg");
    guest.stop();
    let (memory, registers) = (guest.memory(), guest.registers());
    let start = Instant::now();
    let observation = introspector.observe(&memory, &registers);
    eprintln!("first observation: {:?}", start.elapsed());
    guest.resume();
    let after = Truth::ask(&mut guest);

    let linux = observation.linux.as_ref().expect("a Linux guest");
    let kernel = introspector.kernel().unwrap();
    assert_eq!(linux.kernel.banner, version.trim_end());
    assert_eq!((linux.kernel.cpus, linux.kernel.tainted, linux.kernel.torn), (2, Some(0), false));
    tasks_agree(linux, &before, &after);
    modules_agree(linux, &modules);
    counters_agree(linux, &before, &after);
    log_agrees(linux, &log);
    let mut all = String::new();
    for (address, name) in kernel.symbols_within(0..u64::MAX) {
        writeln!(all, "{address:016x} {name}").unwrap();
    }
    assert_eq!(gzip_trailer(all.as_bytes()), symbols.trim(), "kallsyms");
    assert_eq!(linux.integrity, [], "a healthy guest has no violation");
    assert!(linux.syscalls.len() > 800 && linux.syscalls.iter().all(|call| call.in_text));

    guest.stop();
    let registers = guest.registers();
    let observation = introspector.observe(&memory, &registers);
    let linux = observation.linux.as_ref().unwrap();
    assert_eq!((linux.integrity.as_slice(), linux.syscalls.as_slice()), ([].as_slice(), [].as_slice()));
    kernel_is_found_without_registers(&kernel, &memory);
    attacks_are_named(&guest, &kernel, &mut introspector, &registers, linux);
    mutations_are_survived(&memory, &registers, &mut introspector);
    observations_are_quick(&memory, &registers);
    let late = from_the_start.observe(&memory, &registers).linux.unwrap();
    assert_eq!((late.integrity.as_slice(), late.syscalls.as_slice()), ([].as_slice(), [].as_slice()));
    guest.resume();

    // The other one learnt from damaged memories what modules are like.
    lawful_changes_are_no_violations(&mut guest, &mut from_the_start);
    moments_of_a_busy_guest_are_no_violations(&mut guest, &mut from_the_start);
}

fn tasks_agree(linux: &Linux, before: &Truth, after: &Truth) {
    let seen: BTreeMap<i32, _> = linux.tasks.iter().map(|task| (task.pid, task)).collect();
    assert_eq!(seen.len(), linux.tasks.len(), "no task twice");
    let mut compared = 0;
    for (pid, (process, comm, ppid, start, busy)) in &before.tasks {
        let Some((_, _, _, _, busy_after)) = after.tasks.get(pid).filter(|task| task.3 == *start) else {
            continue;
        };
        let task = seen.get(pid).unwrap_or_else(|| panic!("task {pid} ({comm}) is missing"));
        // A worker's name changes with its work; of a kernel thread /proc knows a longer name.
        let comm: &String = &comm.chars().take(15).collect();
        if !comm.starts_with("kworker") {
            assert_eq!((task.tgid, &task.comm, task.ppid), (*process, comm, *ppid));
        }
        assert_eq!(task.start_time_ns / 10_000_000, *start, "{comm}");
        let own = (task.utime_ns + task.stime_ns) / 10_000_000;
        assert!(
            (busy.saturating_sub(1)..=busy_after + 1).contains(&own),
            "{comm}: {busy} {own} {busy_after}"
        );
        if let Some(uid) = before.uids.get(pid) {
            assert_eq!(task.uid, Some(*uid), "{comm}");
        }
        assert!(task.views.starts_with("list+pid-idr"), "{comm}: {}", task.views);
        compared += 1;
    }
    assert!(compared > 40, "only {compared} tasks compared");
    for task in &linux.tasks {
        let known = before.tasks.contains_key(&task.pid) || after.tasks.contains_key(&task.pid);
        let started_between = task.start_time_ns / 10_000_000 >= (before.uptime_s * 100.0) as u64;
        assert!(known || started_between, "invented: {task:?}");
    }
    assert!(linux.tasks.iter().any(|task| task.tgid == 1 && !task.kernel_thread && task.rss_pages > 0));
    assert!(linux.tasks.iter().any(|task| task.comm == "kthreadd" && task.kernel_thread));
}

fn modules_agree(linux: &Linux, told: &str) {
    let told: BTreeSet<String> = told
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            format!("{} {} {} {} {}", words[0], words[1], words[2], words[4].to_lowercase(), words[5])
        })
        .collect();
    let read: BTreeSet<String> = linux
        .modules
        .iter()
        .map(|module| {
            let refcount = module.refcount.unwrap();
            format!(
                "{} {} {refcount} {} {:#018x}",
                module.name, module.size_bytes, module.state, module.address
            )
        })
        .collect();
    assert_eq!(read, told);
    assert!(linux.modules.iter().all(|module| module.views == "list+kset+tree"));
}

fn counters_agree(linux: &Linux, before: &Truth, after: &Truth) {
    let read: BTreeMap<&str, i64> = linux.counters.iter().map(|c| (c.name.as_str(), c.value)).collect();
    assert_eq!(read.len(), linux.counters.len(), "no name twice");
    // Settings, and a name that stands for nothing any more.
    let ours = |name: &&String| {
        *name != "nr_unstable" && !name.starts_with("numa_") && !name.ends_with("_threshold")
    };
    let missing: Vec<_> =
        before.vmstat.keys().filter(ours).filter(|name| !read.contains_key(name.as_str())).collect();
    assert_eq!(missing, Vec::<&String>::new());
    for name in ["pgfault", "pgalloc_normal", "pgalloc_dma32", "pgfree", "pgpgin"] {
        let range = before.vmstat[name]..=after.vmstat[name];
        assert!(range.contains(&read[name]), "{name}: {} in {range:?}", read[name]);
    }
    assert!((before.switches..=after.switches).contains(&read["context_switches"]));
    assert!((before.forks..=after.forks).contains(&read["total_forks"]));
    let free = before.vmstat["nr_free_pages"];
    assert!((read["nr_free_pages"] - free).abs() < free / 10);
    for name in
        ["cpu_user_ns", "cpu_system_ns", "interrupts", "load1", "nr_threads", "nr_processes", "nr_running"]
    {
        assert!(read.contains_key(name), "{name}");
    }
    let idle = read["cpu_idle_ns"] / 10_000_000;
    assert!((before.idle - 2..=after.idle + 2).contains(&idle), "{} {idle} {}", before.idle, after.idle);
    let uptime = linux.kernel.uptime_ns.unwrap() as f64 / 1e9;
    assert!((before.uptime_s - 0.1..=after.uptime_s + 0.1).contains(&uptime), "{uptime}");
    let cpu: i64 = ["cpu_user_ns", "cpu_system_ns", "cpu_nice_ns", "cpu_softirq_ns"]
        .iter()
        .map(|name| read[*name])
        .sum();
    assert!(cpu > 0 && cpu as f64 / 1e9 < uptime * 2.0);
}

fn log_agrees(linux: &Linux, told: &str) {
    let read: BTreeSet<String> = linux
        .log
        .iter()
        .flat_map(|line| {
            let (seconds, micros) = (line.time_ns / 1_000_000_000, line.time_ns / 1000 % 1_000_000);
            line.text
                .split('\n')
                .map(move |text| format!("[{seconds:5}.{micros:06}] {text}"))
                .collect::<Vec<_>>()
        })
        .collect();
    let told: Vec<&str> = told.lines().filter(|line| line.starts_with('[')).collect();
    let missing: Vec<_> = told.iter().filter(|line| !read.contains(**line)).collect();
    assert_eq!(missing, Vec::<&&str>::new());
    assert!(told.len() > 100);
    let sequences: Vec<u64> = linux.log.iter().map(|line| line.sequence).collect();
    assert!(sequences.is_sorted_by(|one, next| *next == one + 1), "no record is left out");
}

/// What gzip writes at its end, in hexadecimal: CRC-32 and length.
fn gzip_trailer(bytes: &[u8]) -> String {
    let crc = !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    let trailer = [crc.to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
    trailer.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
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

fn kernel_is_found_without_registers(kernel: &Kernel, memory: &dyn MemoryView) {
    for view in [memory, &WithoutNotes(memory)] {
        let found = Kernel::find(view, &[]).unwrap();
        assert_eq!(
            (found.banner(), found.address_space(), found.symbol("init_task"), found.physical_base()),
            (kernel.banner(), kernel.address_space(), kernel.symbol("init_task"), kernel.physical_base())
        );
    }
    let real_mode = [VcpuRegisters::default()];
    assert!(Kernel::find(memory, &real_mode).unwrap_err().to_string().contains("long mode"));
}

fn attacks_are_named(
    guest: &Guest,
    kernel: &Kernel,
    introspector: &mut Introspector,
    registers: &[VcpuRegisters],
    linux: &Linux,
) {
    let memory = guest.memory();
    let word = |address: u64| {
        let mut bytes = [0; 8];
        kernel.read_virtual(&memory, address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let mut attack = |changes: &[(Gpa, Vec<u8>)], registers: &[VcpuRegisters]| -> Vec<Violation> {
        let found = guest.with_changed(changes, || introspector.observe(&memory, registers));
        let healed = introspector.observe(&memory, registers).linux.unwrap().integrity;
        if !changes.is_empty() {
            assert_eq!(healed, [], "what was put back is no violation any more");
        }
        found.linux.unwrap().integrity
    };
    let kinds =
        |violations: &[Violation]| violations.iter().map(|violation| violation.kind).collect::<Vec<_>>();

    // getppid leads to getpid: by the call that counts, then by the table.
    let number = kernel.syscall_number(&memory, "getppid").unwrap();
    assert_eq!(number, 110);
    let sites = kernel.syscall_sites(&memory, number).unwrap();
    let other = kernel.symbol("__x64_sys_getpid").unwrap();
    let call = sites.dispatch.expect("this kernel dispatches through x64_sys_call");
    assert_eq!((call.target, sites.symbol.as_deref()), (sites.target, Some("__x64_sys_getppid")));
    let displacement = call.displacement_to(other).unwrap().to_le_bytes().to_vec();
    let found = attack(&[(call.displacement_gpa, displacement)], registers);
    assert_eq!(kinds(&found), [ViolationKind::SyscallRedirected, ViolationKind::TextChanged]);
    let redirected = &found[0];
    assert_eq!(
        (redirected.object.as_str(), redirected.symbol.as_deref()),
        ("getppid", Some("__x64_sys_getppid"))
    );
    assert!(
        redirected.expected.contains("__x64_sys_getppid") && redirected.found.contains("__x64_sys_getpid")
    );
    assert_eq!(found[1].symbol.as_deref(), Some("x64_sys_call"));
    let found = attack(&[(sites.table_entry.gpa, other.to_le_bytes().to_vec())], registers);
    // The table is constant data, too.
    assert_eq!(kinds(&found), [ViolationKind::SyscallRedirected, ViolationKind::RodataChanged]);
    let outside = linux.modules[0].address;
    let found = attack(&[(sites.table_entry.gpa, outside.to_le_bytes().to_vec())], registers);
    assert!(found[0].detail.contains("out of the kernel's code"), "{found:?}");

    // Code of another function.
    let function = kernel.symbol("vfs_read").unwrap() + 40;
    let found = attack(&[(kernel.translate(&memory, function).unwrap(), vec![0xcc, 0x13])], registers);
    assert_eq!(kinds(&found), [ViolationKind::TextChanged]);
    assert_eq!(found[0].object, "vfs_read");
    // One that starts anew sees it only when it learnt before what the code was like.
    let gpa = kernel.translate(&memory, function).unwrap();
    for (learns, seen) in [(true, 1), (false, 0)] {
        let mut anew = Introspector::new();
        if learns {
            anew.learn(&memory, registers);
        }
        let found = guest.with_changed(&[(gpa, vec![0xcc, 0x13])], || anew.observe(&memory, registers));
        assert_eq!(found.linux.unwrap().integrity.len(), seen, "learns: {learns}");
    }

    // The page-fault gate.
    let gate = kernel.translate(&memory, kernel.symbol("idt_table").unwrap() + 14 * 16).unwrap();
    let found = attack(
        &[
            (gate, outside.to_le_bytes()[..2].to_vec()),
            (Gpa(gate.0 + 6), outside.to_le_bytes()[2..4].to_vec()),
        ],
        registers,
    );
    assert_eq!(kinds(&found), [ViolationKind::IdtRedirected]);
    assert_eq!(found[0].object, "gate 14");

    // Registers.
    let mut weak = registers.to_vec();
    weak[1].cr4 &= !(1 << 20);
    weak[0].cr0 &= !(1 << 16);
    weak[0].lstar = Some(outside);
    let found = attack(&[], &weak);
    assert_eq!(
        kinds(&found),
        [ViolationKind::ControlRegister, ViolationKind::ControlRegister, ViolationKind::Lstar]
    );

    // A process and a module leave their lists.
    let unlink = |link: u64| {
        let (next, previous) = (word(link), word(link + 8));
        vec![
            (kernel.translate(&memory, previous).unwrap(), next.to_le_bytes().to_vec()),
            (kernel.translate(&memory, next + 8).unwrap(), previous.to_le_bytes().to_vec()),
        ]
    };
    let init = kernel.symbol("init_task").unwrap();
    let first = linux.tasks.iter().find(|task| task.pid == 1).unwrap();
    // init_task's list leads to the first process: so far is the link from the start of a task.
    let link = (0..8192).step_by(8).find(|offset| {
        let next = word(init + offset);
        next == first.address + offset && word(next + 8) == init + offset
    });
    let link = link.expect("the link to the first process");
    let hidden = linux.tasks.iter().find(|task| task.comm == "httpd").unwrap();
    let found = attack(&unlink(hidden.address + link), registers);
    assert_eq!(kinds(&found), [ViolationKind::HiddenTask]);
    assert_eq!(found[0].object, format!("task {} (httpd)", hidden.pid));
    let found = attack(&unlink(word(kernel.symbol("modules").unwrap())), registers);
    assert_eq!(kinds(&found), [ViolationKind::HiddenModule]);
}

/// A memory in which some words are other than they were, the same ones whenever they are read.
struct Mutated<'v> {
    view: &'v dyn MemoryView,
    seed: u64,
}

fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ mixed >> 31
}

impl MemoryView for Mutated<'_> {
    fn layout(&self) -> &MemoryLayout {
        self.view.layout()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        self.view.read_page(gfn, into)?;
        let mut random = self.seed ^ gfn.0 << 20;
        let odds = [64, 8, 2][self.seed as usize % 3];
        if next_random(&mut random).is_multiple_of(odds) {
            for _ in 0..=next_random(&mut random) % 16 {
                let (at, from) = (
                    next_random(&mut random) as usize % 512 * 8,
                    next_random(&mut random) as usize % 512 * 8,
                );
                let word = match next_random(&mut random) % 6 {
                    0 => 0,
                    1 => u64::MAX,
                    2 => next_random(&mut random),
                    3 => u64::from_le_bytes(*into[from..].first_chunk().unwrap()),
                    4 => {
                        u64::from_le_bytes(*into[at..].first_chunk().unwrap())
                            ^ 1 << (next_random(&mut random) % 64)
                    }
                    _ => u64::from_le_bytes(*into[at..].first_chunk().unwrap()).wrapping_add(8),
                };
                into[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        Ok(())
    }
}

fn mutations_are_survived(
    memory: &dyn MemoryView,
    registers: &[VcpuRegisters],
    introspector: &mut Introspector,
) {
    let (mut linux, mut longest) = (0, Duration::ZERO);
    for seed in 0..90 {
        let view = Mutated { view: memory, seed };
        let start = Instant::now();
        let fresh = seed % 6 == 5;
        let observation = if fresh {
            Introspector::new().observe(&view, registers)
        } else {
            introspector.observe(&view, registers)
        };
        assert!(!observation.tables().is_empty());
        linux += u32::from(observation.linux.is_some());
        if let (Some(kernel), true) = (introspector.kernel(), seed % 10 == 0) {
            let map = OwnerMap::build(&kernel, &view, &observation);
            memory.layout().gfns().for_each(|gfn| drop(map.explain(gfn)));
        }
        longest = longest.max(start.elapsed());
        assert!(start.elapsed() < Duration::from_mins(1), "seed {seed} took {:?}", start.elapsed());
        assert!(observation.linux.is_some() || observation.reason.is_some());
    }
    eprintln!("of 90 mutated memories {linux} were still read as Linux; the longest took {longest:?}");
    assert!(linux > 0);
}

/// A memory held by us, whose frames have names.
struct Named<'v> {
    view: &'v dyn MemoryView,
    pages: Vec<Page>,
    zero: Vec<bool>,
    /// Frames whose name changes from one checkpoint to the next.
    generation: u64,
    dirty_every: u64,
}

impl MemoryView for Named<'_> {
    fn layout(&self) -> &MemoryLayout {
        self.view.layout()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        *into = self.pages[gfn.0 as usize];
        Ok(())
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        let generation = if gfn.0.is_multiple_of(self.dirty_every) { self.generation } else { 0 };
        Some(PageToken(gfn.0 | generation << 40))
    }
    fn known_zero(&self, gfn: Gfn) -> bool {
        self.zero[gfn.0 as usize]
    }
}

fn observations_are_quick(memory: &dyn MemoryView, registers: &[VcpuRegisters]) {
    let mut pages = vec![[0; 4096]; memory.layout().pages() as usize];
    for (gfn, page) in memory.layout().gfns().zip(&mut pages) {
        memory.read_page(gfn, page).unwrap();
    }
    let zero = pages.iter().map(is_zero).collect();
    let mut view = Named { view: memory, pages, zero, generation: 0, dirty_every: 131 };
    let mut introspector = Introspector::new();
    let mut times = Vec::new();
    for generation in 0..8 {
        view.generation = generation;
        let start = Instant::now();
        let observation = introspector.observe(&view, registers);
        times.push(start.elapsed());
        if generation > 0 {
            assert!(observation.memory.pages_read < 1200, "{:?}", observation.memory);
        }
    }
    eprintln!("observations of a memory with names: {times:?}");
}

fn lawful_changes_are_no_violations(guest: &mut Guest, introspector: &mut Introspector) {
    let commands = [
        "mkdir -p /run/tracing && mount -t tracefs none /run/tracing; echo mounted",
        "echo 1 > /run/tracing/events/sched/enable; echo 1 > /run/tracing/events/syscalls/enable",
        "echo 'vfs_*' > /run/tracing/set_ftrace_filter; echo function > /run/tracing/current_tracer",
        "echo 'p:probe do_sys_openat2' > /run/tracing/kprobe_events; echo 1 > /run/tracing/events/kprobes/enable",
        "echo 0 > /run/tracing/events/kprobes/enable; echo > /run/tracing/kprobe_events",
        "rmmod virtio_rng; echo nop > /run/tracing/current_tracer",
        "insmod $(find /lib/modules -name virtio_rng.ko | head -n 1)",
        "echo 0 > /run/tracing/events/enable",
    ];
    let mut changed = 0;
    for command in commands {
        let said = guest.run(&format!("{{ {command}; }} 2>&1"));
        guest.stop();
        let (memory, registers) = (guest.memory(), guest.registers());
        let observation = introspector.observe(&memory, &registers);
        guest.resume();
        let linux = observation.linux.expect("a Linux guest");
        assert_eq!(linux.integrity, [], "after {command}: {said}");
        changed = changed.max(observation.memory.kernel_text_pages_changed);
        eprintln!(
            "{} text pages differ after {command} {said}",
            observation.memory.kernel_text_pages_changed
        );
    }
    assert!(changed > 0, "tracing changes code, or this test proves nothing");
}

/// Processes come and go by the hundred: whatever instant a checkpoint falls into, nothing is hidden.
fn moments_of_a_busy_guest_are_no_violations(guest: &mut Guest, introspector: &mut Introspector) {
    guest.run("(for n in 1 2 3; do (while :; do /bin/true; insmod /nothing; done) & done) >/dev/null 2>&1");
    let (mut torn, mut forks) = (0, BTreeSet::new());
    for moment in 0..60 {
        std::thread::sleep(Duration::from_millis(7 + moment * 13 % 31));
        guest.stop();
        let (memory, registers) = (guest.memory(), guest.registers());
        let linux = introspector.observe(&memory, &registers).linux.expect("a Linux guest");
        guest.resume();
        assert_eq!(linux.integrity, [], "at moment {moment}");
        torn += u32::from(linux.kernel.torn);
        forks.extend(
            linux
                .counters
                .iter()
                .filter(|counter| counter.name == "total_forks")
                .map(|counter| counter.value),
        );
    }
    let (first, last) = (forks.first().unwrap(), forks.last().unwrap());
    assert!(last - first > 30, "only {} forks", last - first);
    eprintln!("60 moments with {} forks between them, {torn} torn", last - first);
}

/// From the firmware to the first process: no kernel, half a kernel, a whole one.
fn boot_is_no_violation(guest: &mut Guest) -> Introspector {
    let mut introspector = Introspector::new();
    let (mut without, mut with) = (0, 0);
    for moment in 0..400 {
        std::thread::sleep(Duration::from_millis(20));
        guest.stop();
        let (memory, registers) = (guest.memory(), guest.registers());
        let observation = introspector.observe(&memory, &registers);
        guest.resume();
        let Some(linux) = observation.linux else {
            assert!(observation.reason.is_some());
            without += 1;
            continue;
        };
        assert_eq!(linux.integrity, [], "at moment {moment}");
        with += 1;
        if linux.tasks.iter().any(|task| task.comm == "workload") {
            break;
        }
    }
    eprintln!("boot: {without} moments without a kernel, {with} with one");
    assert!(without > 0 && with > 0);
    introspector
}
