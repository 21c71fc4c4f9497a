use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, bits, integer};

/// What the kernel counts for one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Its number.
    pub cpu: u32,
    /// Whether it is online.
    pub online: bool,
    /// Time in user mode.
    pub user_ns: u64,
    /// Time in user mode for tasks of low priority.
    pub nice_ns: u64,
    /// Time in the kernel.
    pub system_ns: u64,
    /// Time idle, as /proc/stat has it.
    pub idle_ns: u64,
    /// Time idle while a task waited for a device.
    pub iowait_ns: u64,
    /// Time in interrupts.
    pub irq_ns: u64,
    /// Time in soft interrupts.
    pub softirq_ns: u64,
    /// Time that the hypervisor took away.
    pub steal_ns: u64,
    /// Context switches.
    pub context_switches: u64,
    /// Interrupts of devices.
    pub interrupts: u64,
    /// Tasks that run or could.
    pub running: u64,
    /// Thread that it runs; 0 when it is idle.
    pub current_pid: i32,
    /// When the watchdog against lockups was last content, in units of 2^30 ns of the scheduler's clock.
    pub watchdog_touched: Option<u64>,
}

impl Fact for Processor {
    const SCHEMA: Schema = Schema {
        table: "fact_processor",
        columns: &[
            integer("cpu"),
            integer("online"),
            integer("user_ns"),
            integer("nice_ns"),
            integer("system_ns"),
            integer("idle_ns"),
            integer("iowait_ns"),
            integer("irq_ns"),
            integer("softirq_ns"),
            integer("steal_ns"),
            integer("context_switches"),
            integer("interrupts"),
            integer("running"),
            integer("current_pid"),
            integer("watchdog_touched"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.cpu.into(),
            self.online.into(),
            bits(self.user_ns),
            bits(self.nice_ns),
            bits(self.system_ns),
            bits(self.idle_ns),
            bits(self.iowait_ns),
            bits(self.irq_ns),
            bits(self.softirq_ns),
            bits(self.steal_ns),
            bits(self.context_switches),
            bits(self.interrupts),
            bits(self.running),
            i64::from(self.current_pid).into(),
            self.watchdog_touched.map_or(Value::Null, bits),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Processor { watchdog_touched: Some(u64::MAX), ..Default::default() });
    }
}
