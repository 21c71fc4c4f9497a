//! Which objects are compared, what their types are, and which fields are listed first.

use crate::{
    linux::{paths::Paths, slabs::SlabCache},
    probe::Probe,
};

/// The types of objects in caches whose name is not the name of their type.
const TYPES: [(&str, &str); 30] = [
    ("cred_jar", "cred"),
    ("inode_cache", "inode"),
    ("shmem_inode_cache", "shmem_inode_info"),
    ("proc_inode_cache", "proc_inode"),
    ("sock_inode_cache", "socket_alloc"),
    ("hugetlbfs_inode_cache", "hugetlbfs_inode_info"),
    ("bdev_cache", "bdev_inode"),
    ("kernfs_node_cache", "kernfs_node"),
    ("filp", "file"),
    ("signal_cache", "signal_struct"),
    ("sighand_cache", "sighand_struct"),
    ("files_cache", "files_struct"),
    ("fs_cache", "fs_struct"),
    ("mnt_cache", "mount"),
    ("buffer_head", "buffer_head"),
    ("TCP", "tcp_sock"),
    ("TCPv6", "tcp6_sock"),
    ("UDP", "udp_sock"),
    ("UDPv6", "udp6_sock"),
    ("UNIX", "unix_sock"),
    ("UNIX-STREAM", "unix_sock"),
    ("RAW", "raw_sock"),
    ("PING", "raw_sock"),
    ("PACKET", "packet_sock"),
    ("skbuff_head_cache", "sk_buff"),
    ("radix_tree_node", "xa_node"),
    ("uts_namespace", "uts_namespace"),
    ("net_namespace", "net"),
    ("pool_workqueue", "pool_workqueue"),
    ("task_group", "task_group"),
];

/// Structures in the order in which their changes are listed; the others follow.
const TELLING: [&str; 16] = [
    "cred",
    "task_struct",
    "mount",
    "net",
    "uts_namespace",
    "file",
    "dentry",
    "shmem_inode_info",
    "inode",
    "tcp_sock",
    "udp_sock",
    "unix_sock",
    "signal_struct",
    "files_struct",
    "mm_struct",
    "vm_area_struct",
];

/// Fields that are listed first, of any structure.
const TELLING_FIELDS: [&str; 22] = [
    "comm",
    "__state",
    "state",
    "exit_state",
    "exit_code",
    "flags",
    "cred",
    "real_cred",
    "uid",
    "euid",
    "gid",
    "egid",
    "cap_effective",
    "mm",
    "i_size",
    "i_mode",
    "i_uid",
    "i_nlink",
    "i_state",
    "d_name",
    "d_flags",
    "d_inode",
];

/// Fields that change all the time: times, statistics, links of queues, locks.
const NOISY_FIELDS: [&str; 49] = [
    "sched_remote",
    "acct_",
    "kstack_offset",
    "thread_info.",
    "numa_",
    "write_protect",
    "tlb_",
    "rss_stat.events",
    "i_security",
    "csw",
    "wakee",
    "recent_used",
    "wake_cpu",
    "notify_next",
    "thread_info.cpu",
    ".next",
    ".prev",
    "pprev",
    "non_rcu",
    "f_owner",
    "f_iocb",
    "usage",
    "f_count",
    "i_count",
    "d_lockref",
    "i_version",
    "d_inode_",
    "xarray",
    "xa_",
    "_idx",
    "d_subdirs",
    "se.",
    "rt.",
    "dl.",
    "stats.",
    "sched_info.",
    "rcu",
    "lock",
    "wait",
    "list",
    "node",
    "utime",
    "stime",
    "clock",
    "last_",
    "time",
    "seq",
    "thread.",
    "prev_cputime",
];

/// The name of the type of a cache's objects, if the kernel describes it and the sizes agree.
pub(super) fn type_of(probe: &Probe, cache: &SlabCache) -> Option<(u32, String)> {
    let (name, object_bytes) = (cache.name.as_str(), cache.object_bytes);
    let named = TYPES.iter().find(|(of, _)| *of == name).map_or(name, |(_, name)| *name);
    // A merged cache holds objects of several types: decoding all of them as one type would give wrong fields.
    if cache.is_merged && !TELLING.contains(&named) {
        return None;
    }
    let id = probe.types.structure(named)?;
    let bytes = probe.types.size_of(named)?;
    // The last member of `task_struct`, the saved registers, is allocated at the size that the CPU needs; the type has
    // the largest size.
    let fits = bytes <= object_bytes || (named == "task_struct" && bytes <= object_bytes * 4);
    (fits && object_bytes <= bytes.max(64) * 4).then(|| (id, named.to_owned()))
}

/// The rank of a structure: lower is reported earlier.
pub(super) fn structure_rank(structure: &str) -> usize {
    TELLING.iter().position(|name| *name == structure).unwrap_or(TELLING.len())
}

/// The rank of a field.
pub(super) fn field_rank(path: &str) -> usize {
    let first = path.split(['.', '[']).next().unwrap_or(path);
    // Structures with an inner one (`vfs_inode.i_size`) are reported by the inner name.
    let last = path.rsplit('.').next().unwrap_or(path);
    let telling = TELLING_FIELDS.iter().position(|field| *field == first || *field == last);
    match telling {
        Some(rank) => rank,
        None if first == "rcu" || NOISY_FIELDS.iter().any(|noisy| path.contains(noisy)) => 200,
        None => 100,
    }
}

/// Whether a structure only links others: nodes of trees, the allocator's own structures.
pub(super) fn is_plumbing(structure: &str) -> bool {
    const PLUMBING: [&str; 19] = [
        "buffer_head",
        "request_queue",
        "bio",
        "request",
        "signal_struct",
        "sighand_struct",
        "files_struct",
        "fs_struct",
        "sigqueue",
        "proc_inode",
        "maple_node",
        "anon_vma",
        "anon_vma_chain",
        "vmap_area",
        "kmem_cache",
        "kmem_cache_node",
        "xa_node",
        "vm_area_struct",
        "pid",
    ];
    PLUMBING.contains(&structure)
}

/// The counter of each structure that is above zero while an object is in use.
const COUNTERS: [(&str, &[&str]); 9] = [
    ("kernfs_node", &["count.counter"]),
    ("cred", &["usage.counter", "usage"]),
    ("file", &["f_count.counter", "f_ref.refcnt.counter", "f_count"]),
    ("task_struct", &["usage.refs.counter"]),
    ("signal_struct", &["live.counter"]),
    ("mm_struct", &["mm_users.counter"]),
    ("files_struct", &["count.counter"]),
    ("fs_struct", &["users"]),
    ("sighand_struct", &["count.refs.counter"]),
];

/// Whether an object is in use; `true` for structures without such a counter.
pub(super) fn is_alive(probe: &Probe, structure: &str, address: u64) -> bool {
    let number = |path: &str| {
        let field = probe.field(structure, path)?;
        probe.reader.number(address, field).map(|raw| match field.size_bytes {
            4 => i64::from(u32::try_from(raw).unwrap_or(0).cast_signed()),
            _ => raw.cast_signed(),
        })
    };
    if structure == "dentry" {
        // The count of a freed entry is far below zero, and one that was never used has no parent.
        return number("d_lockref.count").is_none_or(|count| count >= 0) && number("d_parent") != Some(0);
    }
    if probe.field(structure, "vfs_inode").is_some() || structure == "inode" {
        let inode = |path: &str| number(path).or_else(|| number(&format!("vfs_inode.{path}")));
        return inode("i_mode") != Some(0) && inode("i_ino") != Some(0);
    }
    let paths = COUNTERS.iter().find(|(name, _)| *name == structure).map_or(&[][..], |(_, paths)| *paths);
    paths.iter().find_map(|path| number(path)).is_none_or(|count| count > 0)
}

/// The rank of a variable: settings and lists are listed first, clocks and statistics last.
pub(super) fn variable_rank(name: &str) -> u8 {
    const TELLING: [&str; 14] = [
        "modules",
        "init_task",
        "init_cred",
        "init_net",
        "init_uts_ns",
        "init_pid_ns",
        "idt_table",
        "sys_call_table",
        "modprobe_path",
        "core_pattern",
        "tainted_mask",
        "panic_on_oops",
        "ftrace_ops_list",
        "prog_idr",
    ];
    const NOISY: [&str; 36] = [
        "tk_",
        "vdso",
        "entropy",
        "crng",
        "input_pool",
        "context_tracking",
        "runqueues",
        "nohz",
        "init_stack",
        "system_group",
        "jiffies",
        "tick",
        "load",
        "watchdog",
        "irq_stat",
        "hrtimer",
        "clock",
        "seq",
        "rcu",
        "preempt",
        "current",
        "stat",
        "last_",
        "next_",
        "tlb",
        "timer",
        "fpu",
        "perf",
        "time",
        "hpet",
        "lapic",
        "random",
        "fixed_percpu",
        "serial",
        "nr_",
        "cpu_",
    ];
    match () {
        () if TELLING.contains(&name) => 0,
        () if NOISY.iter().any(|noisy| name.contains(noisy)) => 2,
        () => 1,
    }
}

/// A text that identifies an object.
pub(super) fn label(probe: &Probe, paths: Option<&Paths>, structure: &str, address: u64) -> Option<String> {
    let number = |path: &str| probe.reader.number(address, probe.field(structure, path)?);
    let text = |path: &str, max| {
        probe.reader.string(address.checked_add(probe.field(structure, path)?.offset_bytes)?, max)
    };
    let inode = |path: &str| {
        let inode = address.checked_add(probe.field(structure, path)?.offset_bytes)?;
        paths?.of_inode(probe, inode).map(|path| path.to_string())
    };
    match structure {
        "task_struct" => Some(format!("{} ({})", number("pid")?, text("comm", 16)?)),
        "cred" => Some(format!("uid {}, euid {}", number("uid.val")?, number("euid.val")?)),
        "file" => paths?.of_file(probe, address).map(|path| path.to_string()),
        "dentry" => paths?.of_directory_entry(probe, address).map(|path| path.to_string()),
        "inode" => paths?.of_inode(probe, address).map(|path| path.to_string()),
        "shmem_inode_info" | "proc_inode" | "socket_alloc" | "bdev_inode" => inode("vfs_inode"),
        "kernfs_node" => {
            let name = probe.field(structure, "name")?;
            probe.reader.string(probe.reader.pointer(address, name)?, 64)
        }
        "mm_struct" => {
            let owner = probe.reader.pointer(address, probe.field(structure, "owner")?)?;
            label(probe, paths, "task_struct", owner)
        }
        "vm_area_struct" => Some(format!("{:#x}-{:#x}", number("vm_start")?, number("vm_end")?)),
        _ => None,
    }
    .filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_most_comes_first() {
        assert!(structure_rank("cred") < structure_rank("inode"));
        assert!(structure_rank("inode") < structure_rank("anything"));
        assert!(field_rank("comm") < field_rank("ptrace"));
        assert!(field_rank("vfs_inode.i_size") < field_rank("ptrace"));
        assert!(field_rank("ptrace") < field_rank("se.vruntime"));
    }
}
