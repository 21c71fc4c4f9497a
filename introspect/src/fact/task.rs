fact! {
    /// A thread as the kernel schedules it; the leader of a group (`pid == tgid`) represents its process.
    #[derive(Default)]
    pub struct Task in "fact_task" {
        /// The thread's id in the first pid namespace.
        pub pid: i32 => integer,
        /// The process's id.
        pub tgid: i32 => integer,
        /// The parent process's id; 0 when it has none.
        pub ppid: i32 => integer,
        /// The name, made printable.
        pub comm: String => text,
        /// The parent's name.
        pub parent_comm: String => text,
        /// One letter as in /proc: R, S, D, T, t, X, Z, I, P.
        pub state: char => text volatile,
        /// Real user id.
        pub uid: Option<u32> => integer,
        /// Real group id.
        pub gid: Option<u32> => integer,
        /// Effective user id.
        pub euid: Option<u32> => integer,
        /// Effective group id.
        pub egid: Option<u32> => integer,
        /// Effective capabilities, one bit each.
        pub capabilities: Option<u64> => address,
        /// Start time since boot, suspend included.
        pub start_time_ns: u64 => integer,
        /// CPU time of this thread in user mode, scaled to the precise total as /proc does.
        pub utime_ns: u64 => integer volatile,
        /// CPU time of this thread in the kernel, scaled likewise.
        pub stime_ns: u64 => integer volatile,
        /// Voluntary context switches.
        pub voluntary_switches: u64 => integer volatile,
        /// Involuntary context switches.
        pub involuntary_switches: u64 => integer volatile,
        /// Resident pages (file, anonymous, shared) of its address space; 0 for a task without one.
        pub rss_pages: u64 => integer volatile,
        /// Pages of address space; 0 for a task without one.
        pub vsize_pages: u64 => integer volatile,
        /// Whether it is a kernel thread.
        pub kernel_thread: bool => integer,
        /// Whether a CPU runs it at this instant.
        pub on_cpu: bool => integer volatile,
        /// Address of its `task_struct`.
        pub address: u64 => address,
        /// The views that contain it: `list`, `pid-idr`, `runqueue`, `slab`, joined by `+` in this order.
        pub views: String => text volatile,
        /// The command line of a process, with a space between the arguments; a thread has its leader's.
        pub command_line: Option<String> => text,
        /// The path of a process's executable; a thread has its leader's.
        pub executable: Option<String> => text sought,
        /// The kernel function in which it sleeps, outside the scheduler: `do_wait+0x5f`, `kjournald2+0xc6 [jbd2]`.
        pub waits_in: Option<String> => text volatile,
    }
    question "tasks": "Every thread with state, processor time and memory"
        titled "Tasks" from "SELECT pid, ppid, comm, state, uid, (utime_ns + stime_ns) / 1000000 AS cpu_ms, rss_pages * 4 AS rss_kib, \
         waits_in FROM fact_task WHERE checkpoint = ?1 ORDER BY tgid, pid";
    question "processes": "Every process with its executable and command line"
        titled "Processes" from "SELECT pid, ppid, uid, comm, executable, command_line FROM fact_task \
         WHERE checkpoint = ?1 AND pid = tgid AND NOT kernel_thread ORDER BY pid";
}
