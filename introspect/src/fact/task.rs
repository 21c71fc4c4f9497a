use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, address, integer, text};

/// A thread as the kernel schedules it; the leader of a group (`pid == tgid`) represents its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The thread's id in the first pid namespace.
    pub pid: i32,
    /// The process's id.
    pub tgid: i32,
    /// The parent process's id; 0 when it has none.
    pub ppid: i32,
    /// The name, made printable.
    pub comm: String,
    /// The parent's name.
    pub parent_comm: String,
    /// One letter as in /proc: R, S, D, T, t, X, Z, I, P.
    pub state: char,
    /// Real user id.
    pub uid: Option<u32>,
    /// Real group id.
    pub gid: Option<u32>,
    /// Effective user id.
    pub euid: Option<u32>,
    /// Effective group id.
    pub egid: Option<u32>,
    /// Effective capabilities, one bit each.
    pub capabilities: Option<u64>,
    /// Start, since boot with suspend.
    pub start_time_ns: u64,
    /// CPU time of this thread in user mode, scaled to the precise total as /proc does.
    pub utime_ns: u64,
    /// CPU time of this thread in the kernel, scaled likewise.
    pub stime_ns: u64,
    /// Times it gave the CPU up.
    pub voluntary_switches: u64,
    /// Times the CPU was taken from it.
    pub involuntary_switches: u64,
    /// Resident pages (file, anonymous, shared) of its memory; 0 without memory of its own.
    pub rss_pages: u64,
    /// Pages of address space; 0 without memory of its own.
    pub vsize_pages: u64,
    /// Whether it is a thread of the kernel.
    pub kernel_thread: bool,
    /// Whether a CPU runs it at this instant.
    pub on_cpu: bool,
    /// Address of its `task_struct`.
    pub address: u64,
    /// What led to it: `list`, `pid-idr`, `runqueue`, joined by `+` in this order.
    pub views: String,
    /// The command line of a process, with a space between the arguments; a thread has its leader's.
    pub command_line: Option<String>,
    /// The path of what a process runs; a thread has its leader's.
    pub executable: Option<String>,
    /// Where in the kernel it sleeps, past the scheduler: `do_wait+0x5f`, `kjournald2+0xc6 [jbd2]`.
    pub waits_in: Option<String>,
}

impl Fact for Task {
    const SCHEMA: Schema = Schema {
        table: "fact_task",
        columns: &[
            integer("pid"),
            integer("tgid"),
            integer("ppid"),
            text("comm"),
            text("parent_comm"),
            text("state"),
            integer("uid"),
            integer("gid"),
            integer("euid"),
            integer("egid"),
            text("capabilities"),
            integer("start_time_ns"),
            integer("utime_ns"),
            integer("stime_ns"),
            integer("voluntary_switches"),
            integer("involuntary_switches"),
            integer("rss_pages"),
            integer("vsize_pages"),
            integer("kernel_thread"),
            integer("on_cpu"),
            text("address"),
            text("views"),
            text("command_line"),
            text("executable"),
            text("waits_in"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            i64::from(self.pid).into(),
            i64::from(self.tgid).into(),
            i64::from(self.ppid).into(),
            self.comm.clone().into(),
            self.parent_comm.clone().into(),
            self.state.to_string().into(),
            self.uid.into(),
            self.gid.into(),
            self.euid.into(),
            self.egid.into(),
            address(self.capabilities),
            self.start_time_ns.into(),
            self.utime_ns.into(),
            self.stime_ns.into(),
            self.voluntary_switches.into(),
            self.involuntary_switches.into(),
            self.rss_pages.into(),
            self.vsize_pages.into(),
            self.kernel_thread.into(),
            self.on_cpu.into(),
            Value::address(self.address),
            self.views.clone().into(),
            self.command_line.clone().into(),
            self.executable.clone().into(),
            self.waits_in.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Task { uid: Some(0), ..Default::default() });
    }
}
