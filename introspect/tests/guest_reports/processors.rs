use retrovisor_introspect::{Linux, fact::Processor};

use crate::{dump::Dump, statement::Statement};

/// The times of each CPU in hundredths of a second.
fn reported(statement: &Statement) -> Vec<Vec<u64>> {
    let stat = statement.text("/proc/stat");
    let of_cpu = |line: &str| {
        let rest = line.strip_prefix("cpu").filter(|rest| !rest.starts_with(' '))?;
        Some(rest.split_whitespace().map(|word| word.parse().unwrap()).collect())
    };
    stat.lines().filter_map(of_cpu).collect()
}

/// Each CPU's times.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    let (before, after) = (reported(&dump.before), reported(&dump.after));
    let online: Vec<&Processor> = linux.processors.iter().filter(|processor| processor.online).collect();
    assert_eq!(online.len(), before.len());
    for ((own, before), after) in online.iter().zip(&before).zip(&after) {
        assert_eq!(u64::from(own.cpu), before[0]);
        let times = [
            own.user_ns,
            own.nice_ns,
            own.system_ns,
            own.idle_ns,
            own.iowait_ns,
            own.irq_ns,
            own.softirq_ns,
            own.steal_ns,
        ];
        for (kind, own_ns) in times.iter().enumerate() {
            let (time, slack) = (own_ns / 10_000_000, 4);
            let range = before[kind + 1].saturating_sub(slack)..=after[kind + 1] + slack;
            assert!(range.contains(&time), "time {kind}: {time} in {range:?}, {own:?}");
        }
    }
    let switches: u64 = online.iter().map(|processor| processor.context_switches).sum();
    let counter = linux.counters.iter().find(|counter| counter.name == "context_switches").unwrap();
    assert_eq!(i64::try_from(switches).unwrap(), counter.value);
    for processor in &online {
        let current = linux.tasks.iter().find(|task| task.pid == processor.current_pid);
        assert!(processor.current_pid == 0 || current.is_some_and(|task| task.on_cpu), "{processor:?}");
        let uptime_s = linux.kernel.uptime_ns.unwrap() >> 30;
        assert!(
            processor.watchdog_touched.is_none_or(|touched| touched <= uptime_s + 1 || touched == u64::MAX)
        );
    }
}
