//! Attackers: modules that each make one change are loaded into a real guest. Each is found and named, and a guest that
//! makes only permitted changes gives no violation.
#![expect(clippy::unwrap_used, reason = "a test")]

mod live;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use live::{Guest, Setting};
use retrovisor_introspect::{
    Introspector, Linux,
    fact::{HookKind, Violation, ViolationKind},
};

/// A guest with the attackers' modules, and the introspector that watches it.
struct Victim {
    guest: Guest,
    introspector: Introspector,
    /// Violations that cannot be undone.
    known: Vec<Violation>,
}

/// The folder of a kernel of the matrix, or of the default guest.
fn folder_of(kernel: &str) -> Option<PathBuf> {
    let folder = match kernel {
        "guest" => live::cache()?.join(kernel),
        _ => live::cache()?.join("kernels").join(kernel),
    };
    if !folder.join("manifest.json").is_file() {
        eprintln!(
            "SKIPPED: there is no kernel {kernel}: `make setup` (all of them: `make test-kernels`) fetches it"
        );
        return None;
    }
    Some(folder)
}

fn release_of(folder: &std::path::Path) -> String {
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["kernel_release"].as_str().unwrap().to_owned()
}

impl Victim {
    fn start(folder: &std::path::Path) -> Option<Self> {
        let release = release_of(folder);
        let archive = live::cache()?.join(format!("attackers/{release}.cpio"));
        if !archive.is_file() {
            eprintln!(
                "SKIPPED: no attackers for {release}: setup/attackers.sh builds them, if there are headers"
            );
            return None;
        }
        // The kernel's code is patched all the time here: with several threads QEMU's translator now and then executes
        // half of a patched instruction, and the guest hangs.
        let setting =
            Setting { folder: folder.to_owned(), accelerator: "tcg,thread=single", ..Setting::default() };
        let mut guest = Guest::boot_on(&setting, Some(&archive))?;
        eprintln!("attacks on {}", guest.run("uname -r").trim());
        Some(Self { guest, introspector: Introspector::new(), known: Vec::new() })
    }

    fn observe(&mut self) -> Linux {
        self.guest.stop();
        let (memory, registers) = (self.guest.memory(), self.guest.registers());
        let start = Instant::now();
        let observation = self.introspector.observe(&memory, &registers);
        let elapsed = start.elapsed();
        self.guest.resume();
        let linux = observation.linux.expect("a Linux guest");
        eprintln!("  observed in {elapsed:?}{}", if linux.kernel.torn { ", torn" } else { "" });
        linux
    }

    /// The violations that are not in `known`.
    fn news(&mut self) -> Vec<Violation> {
        let mut found = self.observe().integrity;
        found.retain(|violation| !self.known.iter().any(|known| same(known, violation)));
        found
    }

    fn clean(&mut self, after: &str) {
        let found = self.news();
        assert_eq!(found, [], "after {after}");
    }

    fn shell(&mut self, command: &str) -> String {
        let said = self.guest.run(&format!("{{ {command}; }} 2>&1"));
        eprintln!("{command}: {}", said.trim());
        said
    }

    fn load(&mut self, module: &str, arguments: &str) {
        let said = self.shell(&format!("insmod /lib/attackers/{module}.ko {arguments} && echo lo'a'ded"));
        assert!(said.contains("loaded"), "{module}: {said}");
    }

    /// Loads an attacker, returns the violations, unloads it and checks that none is left.
    fn attack(&mut self, module: &str, arguments: &str) -> Vec<Violation> {
        self.load(module, arguments);
        let found = self.news();
        eprintln!("{found:#?}");
        self.shell(&format!("rmmod {module}"));
        self.clean(&format!("unloading {module}"));
        found
    }

    fn symbol(&self, name: &str) -> String {
        let kernel = self.introspector.kernel().unwrap();
        format!("{:#x}", kernel.symbol(name).unwrap_or_else(|| panic!("no symbol {name}")))
    }

    /// The id of a sleeping process of a user without privileges.
    fn sleeper(&mut self) -> i32 {
        let said = self.shell("rm -f /run/sleeper.pid; start-stop-daemon -S -b -m -p /run/sleeper.pid -c work:work -a /bin/sleep -n nobody -- 5000; usleep 300000; cat /run/sleeper.pid");
        said.lines().last().unwrap().trim().parse().unwrap()
    }
}

fn same(one: &Violation, other: &Violation) -> bool {
    (one.kind, &one.object) == (other.kind, &other.object)
}

fn kinds(found: &[Violation]) -> Vec<ViolationKind> {
    found.iter().map(|violation| violation.kind).collect()
}

/// Each attacker is found and named, and the harmless module gives no violation.
#[test]
fn attackers_of_the_test_guest() {
    attack_in_every_way("guest");
}
#[test]
fn attackers_of_5_10_cloud() {
    attack_in_every_way("bullseye-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn attackers_of_6_1_cloud() {
    attack_in_every_way("bookworm-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn attackers_of_6_12_cloud() {
    attack_in_every_way("trixie-cloud");
}
#[test]
fn attackers_of_7_cloud() {
    attack_in_every_way("sid-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn attackers_of_5_10_plain() {
    attack_in_every_way("bullseye-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn attackers_of_6_1_plain() {
    attack_in_every_way("bookworm-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn attackers_of_6_12_plain() {
    attack_in_every_way("trixie-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn attackers_of_7_plain() {
    attack_in_every_way("sid-plain");
}

fn attack_in_every_way(kernel: &str) {
    let Some(mut victim) = folder_of(kernel).and_then(|folder| Victim::start(&folder)) else { return };
    let victim = &mut victim;
    victim.clean("boot");
    // The harmless module: loaded, in use, unloaded, loaded again.
    assert_eq!(victim.attack("harmless", ""), []);
    victim.load("harmless", "");
    victim.clean("loading harmless");

    system_calls(victim);
    tables_and_code(victim);
    tracers_and_probes(victim);
    tasks_and_credentials(victim);
    modules_that_hide(victim);
}

fn system_calls(victim: &mut Victim) {
    let table = victim.symbol("sys_call_table");
    let found = victim.attack("syscall_table", &format!("table={table}"));
    // The table is also constant data.
    assert_eq!(kinds(&found), [ViolationKind::SyscallRedirected, ViolationKind::RodataChanged]);
    assert_eq!(
        (found[0].object.as_str(), found[0].symbol.as_deref()),
        ("getppid", Some("__x64_sys_getppid"))
    );
    assert!(
        found[0].found.contains("[syscall_table]") || found[1].found.contains("[syscall_table]"),
        "{found:?}"
    );
    assert_eq!(found[1].object, "sys_call_table");

    let kernel = victim.introspector.kernel().unwrap();
    victim.guest.stop();
    let site = kernel.syscall_sites(&victim.guest.memory(), 110).unwrap().dispatch;
    victim.guest.resume();
    let Some(site) = site else { return };
    let found = victim.attack("syscall_dispatch", &format!("site={:#x}", site.virt));
    assert_eq!(kinds(&found), [ViolationKind::SyscallRedirected, ViolationKind::TextChanged]);
    assert_eq!((found[0].object.as_str(), found[1].object.as_str()), ("getppid", "x64_sys_call"));
}

fn tables_and_code(victim: &mut Victim) {
    let table = victim.symbol("idt_table");
    let found = victim.attack("idt_gate", &format!("table={table} vector=4"));
    assert_eq!(kinds(&found)[0], ViolationKind::IdtRedirected);
    assert_eq!((found.len(), found[0].object.as_str()), (1, "gate 4"));
    assert!(found[0].found.contains("idt_gate_stub [idt_gate]"), "{found:?}");
    assert!(found[0].expected.contains("overflow"), "{found:?}");

    let at = victim.symbol("tcp4_seq_ops");
    let found = victim.attack("patch_rodata", &format!("at={at}"));
    assert!(kinds(&found).contains(&ViolationKind::RodataChanged));
    let changed = found.iter().find(|found| found.kind == ViolationKind::RodataChanged).unwrap();
    assert_eq!(changed.object, "tcp4_seq_ops");
    assert!(changed.found.contains("replacement [patch_rodata]"), "{found:?}");

    let at = victim.shell("grep -w harmless_exit /proc/kallsyms | cut -d ' ' -f 1");
    let found = victim.attack("patch_module", &format!("at=0x{}", at.trim()));
    assert_eq!(kinds(&found), [ViolationKind::TextChanged]);
    assert!(found[0].object.ends_with(" [harmless]"), "{found:?}");
    assert!(found[0].found.starts_with("0f 0b"), "{found:?}");
}

fn tracers_and_probes(victim: &mut Victim) {
    let found = victim.attack("ftrace_hook", "function=vfs_statx");
    assert_eq!(kinds(&found), [ViolationKind::FtraceHook]);
    assert_eq!(found[0].object, "vfs_statx");
    assert!(found[0].found.contains("on_call [ftrace_hook]"), "{found:?}");

    let found = victim.attack("kprobe_hook", "function=vfs_fsync");
    assert_eq!(kinds(&found), [ViolationKind::KprobeHook]);
    assert_eq!(found[0].symbol.as_deref(), Some("vfs_fsync"));
    assert!(found[0].found.contains("on_hit [kprobe_hook]"), "{found:?}");
}

fn tasks_and_credentials(victim: &mut Victim) {
    for deep in [0, 1] {
        let pid = victim.sleeper();
        let found = victim.attack("hide_task", &format!("pid={pid} deep={deep}"));
        assert_eq!(kinds(&found), [ViolationKind::HiddenTask]);
        assert_eq!(found[0].object, format!("task {pid} (sleep)"));
        victim.shell(&format!("kill {pid}"));
    }
    let init = victim.symbol("init_cred");
    for (mode, said) in
        [(0, "overwritten"), (1, "another's"), (2, "cache of credentials"), (3, "without executing")]
    {
        let pid = victim.sleeper();
        victim.clean("starting a process without rights");
        victim.load("forge_cred", &format!("pid={pid} mode={mode} init={init}"));
        let found = victim.news();
        eprintln!("{found:#?}");
        assert_eq!(kinds(&found), [ViolationKind::ForgedCredential]);
        assert_eq!(found[0].object, format!("task {pid} (sleep)"));
        assert!(found[0].detail.contains(said), "{found:?}");
        // Rights that were gained without an execution stay reported.
        assert_eq!(victim.news(), found);
        // The kernel never frees the credential: the process keeps it.
        victim.known.extend(found);
        victim.shell("rmmod forge_cred");
        victim.clean("unloading forge_cred");
    }
}

fn modules_that_hide(victim: &mut Victim) {
    victim.load("netfilter_hook", "");
    let found = victim.news();
    eprintln!("{found:#?}");
    assert_eq!(kinds(&found), [ViolationKind::HiddenModule, ViolationKind::NetfilterHook]);
    assert_eq!(
        (found[0].object.as_str(), found[1].object.as_str()),
        ("module netfilter_hook", "ipv4 local-in")
    );
    assert!(found[1].found.contains("on_packet [netfilter_hook]"), "{found:?}");
    let linux = victim.observe();
    assert!(
        linux
            .hooks
            .iter()
            .any(|hook| hook.kind == HookKind::Netfilter && hook.owner.as_deref() == Some("netfilter_hook"))
    );
    victim.known.extend(found);

    let tree = victim.symbol("mod_tree");
    victim.load("hide_module", &format!("deep=1 tree={tree}"));
    let found = victim.news();
    eprintln!("{found:#?}");
    assert_eq!(kinds(&found), [ViolationKind::HiddenModule]);
    assert_eq!(found[0].object, "module hide_module");
    assert_eq!(found[0].found, "memory");
}

/// Changes every function of the kernel, which takes a guest under software emulation many seconds.
const ALL_FUNCTIONS: &str =
    "echo function > /run/tracing/current_tracer; usleep 200000; echo nop > /run/tracing/current_tracer";
/// The commands that a busy but healthy guest runs repeatedly.
const LAWFUL: &[&str] = &[
    "mkdir -p /run/tracing; mount -t tracefs none /run/tracing; true",
    "echo 1 > /run/tracing/events/sched/enable; echo 1 > /run/tracing/events/syscalls/enable",
    "insmod /lib/attackers/harmless.ko",
    "echo 'vfs_*' > /run/tracing/set_ftrace_filter; echo function > /run/tracing/current_tracer",
    "rmmod harmless",
    "echo 'p:one do_sys_openat2' > /run/tracing/kprobe_events; echo 'r:two vfs_read $retval' >> /run/tracing/kprobe_events; echo 1 > /run/tracing/events/kprobes/enable",
    "echo function_graph > /run/tracing/current_tracer; ls -R /sys/module/virtio_blk > /dev/null",
    "echo 0 > /run/tracing/events/kprobes/enable; echo > /run/tracing/kprobe_events",
    "rmmod virtio_rng; echo nop > /run/tracing/current_tracer; echo > /run/tracing/set_ftrace_filter",
    "insmod /lib/modules/virtio_rng.ko",
    "sysctl -w kernel.sched_schedstats=1; sysctl -w net.ipv4.tcp_timestamps=0; sysctl -w kernel.bpf_stats_enabled=1",
    "echo 'tcp_*' > /run/tracing/set_ftrace_filter; echo function > /run/tracing/current_tracer; usleep 200000; echo nop > /run/tracing/current_tracer; echo > /run/tracing/set_ftrace_filter",
    "sysctl -w kernel.sched_schedstats=0; sysctl -w net.ipv4.tcp_timestamps=1; sysctl -w kernel.bpf_stats_enabled=0",
    "start-stop-daemon -S -c work:work -x /bin/sh -- -c 'id; sleep 0.1'; su work -c true; unshare -U -r true; unshare -n true",
    "echo 0 > /run/tracing/events/enable; find /proc/sys > /dev/null",
];

fn lawful_work_gives_no_alarm(duration: Duration) {
    let Some(mut victim) = folder_of("guest").and_then(|folder| Victim::start(&folder)) else { return };
    victim.clean("boot");
    // Running in the background throughout: processes, modules and kprobes that come and go.
    victim.guest.run(
        "(while :; do insmod /lib/attackers/harmless.ko; rmmod harmless; /bin/true; done) >/dev/null 2>&1 & true",
    );
    let (began, mut moments, mut hooks, mut traced) = (Instant::now(), 0, BTreeSet::new(), 0);
    let all = (duration > Duration::from_mins(2)).then_some(&ALL_FUNCTIONS);
    while began.elapsed() < duration {
        for command in LAWFUL.iter().chain(all) {
            // Observed while the command runs, and after it.
            victim.guest.run(&format!("{{ {command}; }} >/dev/null 2>&1 & job=$!; true"));
            for last in [false, false, false, true] {
                if last {
                    victim.guest.run("wait $job");
                }
                let linux = victim.observe();
                assert_eq!(linux.integrity, [], "at {command}");
                hooks.extend(linux.hooks.iter().map(|hook| (hook.kind, hook.place.clone())));
                moments += 1;
                std::thread::sleep(Duration::from_millis(20 + moments * 7 % 50));
            }
            traced = hooks.len();
        }
    }
    eprintln!("{moments} moments in {:?}, {traced} hooks seen", began.elapsed());
    assert!(
        hooks.iter().any(|(kind, _)| *kind == HookKind::Ftrace),
        "no tracer was seen: this proves nothing"
    );
    assert!(
        hooks.iter().any(|(kind, _)| *kind == HookKind::Kprobe),
        "no kprobe was seen: this proves nothing"
    );
}

#[test]
fn a_minute_of_lawful_changes_gives_no_alarm() {
    lawful_work_gives_no_alarm(Duration::from_mins(1));
}

#[test]
#[ignore = "ten minutes: `make test-kernels`"]
fn matrix_ten_minutes_of_lawful_changes_give_no_alarm() {
    lawful_work_gives_no_alarm(Duration::from_mins(10));
}
