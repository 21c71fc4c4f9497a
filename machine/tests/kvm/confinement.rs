//! What a worker may do.

use retrovisor_guest::Machine as _;
use retrovisor_machine::kvm::Limits;

use crate::bare;
use crate::worker::{launch, status};

/// For every thread of a worker with two vCPUs, according to the kernel.
pub(crate) fn assert_threads_are_confined(pid: i32) {
    let mut names = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        let thread = format!("{pid}/task/{thread}");
        let of = |what: &str| {
            let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        assert_eq!((of("Seccomp"), of("NoNewPrivs")), ("2".into(), "1".into()), "{thread}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&of(set), 16), Ok(0), "{set} of {thread}");
        }
        let filters: u32 = of("Seccomp_filters").parse().unwrap();
        let name = of("Name");
        assert!(filters >= if name.starts_with("vcpu") { 3 } else { 2 }, "{name}: {filters} filters");
        names.push(name);
    }
    assert!(names.iter().filter(|name| name.starts_with("vcpu")).count() == 2, "{names:?}");
}

#[test]
fn the_worker_is_confined_before_the_guest_runs() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path(), false) else { return };
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 1);
    let pid = machine.pid();
    eprintln!("confined: {:?}", machine.confinement());
    assert!(machine.confinement().done.iter().any(|what| what == "seccomp"));
    assert_threads_are_confined(pid);
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    if let Some(core) = limits.lines().find(|line| line.starts_with("Max core file size")) {
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut guest = 0;
    let mut in_guest = false;
    for line in maps.lines() {
        if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
            in_guest = line.contains("memfd:retrovisor-guest");
        }
        if in_guest && let Some(flags) = line.strip_prefix("VmFlags:") {
            assert!(
                flags.split_whitespace().any(|flag| flag == "dd"),
                "guest memory would be dumped: {flags}"
            );
            guest += 1;
        }
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root sees a worker's root and mappings");
        return;
    }
    assert_eq!(guest, 2, "the guest's memory is mapped in two parts:\n{maps}");
    let user = Limits::of("bare").user;
    let users: Vec<u32> = status(pid, "Uid").split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(users, [user; 4]);
    assert_eq!(status(pid, "Groups"), "");
    let done = &machine.confinement().done;
    if done.iter().any(|what| what == "empty root") {
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);
    }
    for (kind, what) in
        [("net", "network namespace"), ("mnt", "mount namespace"), ("pid", "process namespace")]
    {
        if done.iter().any(|done| done == what) {
            let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap();
            assert_ne!(of("self"), of(&pid.to_string()), "{what}");
        }
    }
}
