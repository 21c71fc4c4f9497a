fact! {
    /// The counters of one CPU.
    #[derive(Default)]
    pub struct Processor in "fact_processor" {
        /// Its number.
        pub cpu: u32 => integer,
        /// Whether it is online.
        pub online: bool => integer,
        /// Time in user mode.
        pub user_ns: u64 => bits volatile,
        /// Time in user mode for tasks of low priority.
        pub nice_ns: u64 => bits volatile,
        /// Time in the kernel.
        pub system_ns: u64 => bits volatile,
        /// Time idle, as /proc/stat has it.
        pub idle_ns: u64 => bits volatile,
        /// Time idle while a task waited for a device.
        pub iowait_ns: u64 => bits volatile,
        /// Time in interrupts.
        pub irq_ns: u64 => bits volatile,
        /// Time in soft interrupts.
        pub softirq_ns: u64 => bits volatile,
        /// Time that the hypervisor took (steal time).
        pub steal_ns: u64 => bits volatile,
        /// Context switches.
        pub context_switches: u64 => bits volatile,
        /// Interrupts from devices.
        pub interrupts: u64 => bits volatile,
        /// Runnable tasks, the running one included.
        pub running: u64 => bits volatile,
        /// Thread that it runs; 0 when it is idle.
        pub current_pid: i32 => integer volatile,
        /// Last time at which the lockup watchdog was reset, in units of 2^30 ns of the scheduler's clock.
        pub watchdog_touched: Option<u64> => bits volatile,
    }
    question "processors": "Time and context switches of each CPU"
        titled "Processors" from "SELECT cpu, (user_ns + nice_ns) / 1000000 AS user_ms, system_ns / 1000000 AS system_ms, \
         idle_ns / 1000000 AS idle_ms, iowait_ns / 1000000 AS iowait_ms, \
         (irq_ns + softirq_ns) / 1000000 AS irq_ms, steal_ns / 1000000 AS steal_ms, \
         context_switches AS switches, current_pid AS pid FROM fact_processor \
         WHERE checkpoint = ?1 AND online ORDER BY cpu";
}
