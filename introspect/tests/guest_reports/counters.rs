use std::collections::BTreeMap;

use retrovisor_introspect::Linux;

use crate::{dump::Dump, statement::Statement};

fn pairs(statement: &Statement, name: &str) -> BTreeMap<String, i64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.split(' ').next()?.parse().ok()?))
    };
    statement.text(name).lines().filter_map(pair).collect()
}

/// Every counter of /proc/vmstat, and those of /proc/stat and /proc/loadavg.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    let read: BTreeMap<&str, i64> =
        linux.counters.iter().map(|counter| (counter.name.as_str(), counter.value)).collect();
    assert_eq!(read.len(), linux.counters.len(), "no name twice");
    let (before, after) = (pairs(&dump.before, "/proc/vmstat"), pairs(&dump.after, "/proc/vmstat"));
    // Settings, names without a counter, and sums of other counters.
    let ours = |name: &&String| {
        *name != "nr_unstable"
            && !name.starts_with("numa_")
            && !name.ends_with("_threshold")
            && !name.starts_with("nr_memmap")
    };
    let missing: Vec<_> =
        before.keys().filter(ours).filter(|name| !read.contains_key(name.as_str())).collect();
    assert_eq!(missing, Vec::<&String>::new());
    for (name, reported) in &before {
        let Some(own) = read.get(name.as_str()) else { continue };
        // Parts of page counts are on their CPU for a while; event counts only grow.
        if name.starts_with("nr_") {
            let (low, high) = (reported.min(&after[name]), reported.max(&after[name]));
            let slack = 64 + high / 16;
            assert!((low - slack..=high + slack).contains(own), "{name}: {own} in {low}..={high}");
        } else {
            assert!(
                (reported..=&after[name]).contains(&own),
                "{name}: {own} in {reported}..={}",
                after[name]
            );
        }
    }
    let (before, after) = (pairs(&dump.before, "/proc/stat"), pairs(&dump.after, "/proc/stat"));
    for (own, reported) in
        [("context_switches", "ctxt"), ("total_forks", "processes"), ("interrupts", "intr")]
    {
        // The sum of all interrupts in /proc includes the architecture's own.
        let low = if own == "interrupts" { 0 } else { before[reported] };
        assert!(
            (low..=after[reported]).contains(&read[own]),
            "{own}: {} in {low}..={}",
            read[own],
            after[reported]
        );
    }
    let times = |statement: &Statement| -> Vec<i64> {
        let stat = statement.text("/proc/stat");
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect()
    };
    let (before, after) = (times(&dump.before), times(&dump.after));
    for (at, kind) in
        ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"].iter().enumerate()
    {
        let own = read[format!("cpu_{kind}_ns").as_str()] / 10_000_000;
        let slack = 4;
        assert!(
            (before[at] - slack..=after[at] + slack).contains(&own),
            "{kind}: {own} {} {}",
            before[at],
            after[at]
        );
    }
    let load = |statement: &Statement| {
        (statement.text("/proc/loadavg")[..4].parse::<f64>().unwrap() * 100.0).round()
    };
    let loads = [load(&dump.before), load(&dump.after)];
    assert!(
        loads.iter().any(|load| (*load - f64::from(i32::try_from(read["load1"]).unwrap())).abs() < 1.5),
        "{loads:?} {}",
        read["load1"]
    );
}
