use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use retrovisor_introspect::{Linux, fact::Task};

use crate::{dump::Dump, statement::Statement};

/// Every thread of the guest and no other, with the same values as in the guest's report.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    let seen: BTreeMap<i32, &Task> = linux.tasks.iter().map(|task| (task.pid, task)).collect();
    assert_eq!(seen.len(), linux.tasks.len(), "no task twice");
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (dump.before.threads().into_iter().collect(), dump.after.threads().into_iter().collect());
    let reported_at = uptime(&dump.before);
    let missing: Vec<_> =
        before.intersection(&after).filter(|(_, thread)| !seen.contains_key(thread)).collect();
    assert_eq!(missing, Vec::<&(i32, i32)>::new(), "missing tasks");
    let invented: Vec<_> = linux
        .tasks
        .iter()
        .filter(|task| !before.contains(&(task.tgid, task.pid)) && !after.contains(&(task.tgid, task.pid)))
        .filter(|task| {
            u128::from(task.start_time_ns) < reported_at.saturating_sub(Duration::from_secs(2)).as_nanos()
        })
        .collect();
    assert_eq!(invented, Vec::<&Task>::new(), "invented tasks");
    for (process, thread) in before.intersection(&after) {
        let one = |statement: &Statement| Reported::of(statement, *process, *thread);
        one_agrees(seen[thread], &one(&dump.before), &one(&dump.after));
    }
    assert!(before.len() > 40 && linux.tasks.iter().any(|task| task.comm == "scene-three"));
    assert!(
        linux.tasks.iter().any(|task| task.state == 'Z') && linux.tasks.iter().any(|task| task.state == 'T')
    );
}

/// Time since boot at the beginning of the report.
fn uptime(statement: &Statement) -> Duration {
    let reported = statement.text("/proc/uptime");
    Duration::from_secs_f64(reported.split(' ').next().unwrap().parse().unwrap())
}

/// A thread according to /proc.
struct Reported {
    command_line: String,
    executable: String,
    /// The innermost function in which it sleeps, outside the scheduler: `do_wait+0x5f`.
    place: Option<String>,
    comm: String,
    /// The words of `stat` after the name; the first is the state.
    stat: Vec<String>,
    status: BTreeMap<String, String>,
}

impl Reported {
    fn of(statement: &Statement, process: i32, thread: i32) -> Self {
        let folder = format!("/proc/{process}/task/{thread}");
        let stat = statement.text(&format!("{folder}/stat"));
        let (open, close) = (stat.find('(').unwrap(), stat.rfind(')').unwrap());
        let stack = statement.text(&format!("{folder}/stack"));
        // `[<0>] kjournald2+0xc6/0x2a0 [jbd2]`
        let place = stack.lines().next().map(|line| {
            let (symbol, rest) = line.trim_start_matches("[<0>] ").split_once('/').unwrap();
            rest.split_once(' ').map_or(symbol.to_owned(), |(_, module)| format!("{symbol} {module}"))
        });
        let command_line = statement.text(&format!("/proc/{process}/cmdline"));
        Self {
            command_line: command_line.trim_end_matches('\0').replace('\0', " "),
            executable: statement.text(&format!("/proc/{process}/exe")),
            place,
            comm: stat[open + 1..close].to_owned(),
            stat: stat[close + 2..].split_whitespace().map(str::to_owned).collect(),
            status: statement.status(&format!("{folder}/status")),
        }
    }

    fn number(&self, at: usize) -> u64 {
        self.stat[at].parse().unwrap()
    }

    fn status(&self, name: &str, word: usize) -> u64 {
        let value = self.status.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.status));
        value.split_whitespace().nth(word).unwrap().parse().unwrap()
    }
}

fn one_agrees(task: &Task, before: &Reported, after: &Reported) {
    let what = format!("{task:?}");
    let either = |own: u64, reported: &dyn Fn(&Reported) -> u64| {
        let (before, after) = (reported(before), reported(after));
        assert!(own == before || own == after, "{own}, reported {before} and {after}: {what}");
    };
    let between = |own: u64, slack: u64, reported: &dyn Fn(&Reported) -> u64| {
        let (before, after) = (reported(before), reported(after));
        assert!(
            (before.saturating_sub(slack)..=after + slack).contains(&own),
            "{own} in {before}..={after}: {what}"
        );
    };
    // A worker's name in /proc includes its current work; of other kernel threads /proc has a longer name.
    let names_agree = |reported: &str| reported.starts_with(&task.comm);
    assert!(names_agree(&before.comm) || names_agree(&after.comm), "{} {what}", before.comm);
    let switches = |reported: &Reported| {
        reported.status("voluntary_ctxt_switches", 0) + reported.status("nonvoluntary_ctxt_switches", 0)
    };
    // A task that runs at the instant of the dump, or that ran between the two reports, may have had another state in
    // both.
    let running = task.state == 'R' || switches(before) != switches(after);
    assert!(
        running || [before, after].iter().any(|reported| reported.stat[0] == task.state.to_string()),
        "{:?} {what}",
        before.stat
    );
    either(u64::try_from(task.ppid).unwrap(), &|reported| reported.number(1));
    either(task.uid.unwrap().into(), &|reported| reported.status("Uid", 0));
    either(task.gid.unwrap().into(), &|reported| reported.status("Gid", 0));
    either(task.euid.unwrap().into(), &|reported| reported.status("Uid", 1));
    either(task.egid.unwrap().into(), &|reported| reported.status("Gid", 1));
    let capabilities = u64::from_str_radix(&before.status["CapEff"], 16).unwrap();
    assert_eq!(task.capabilities, Some(capabilities), "{what}");
    if task.pid == task.tgid && !task.kernel_thread && task.state != 'Z' {
        assert_eq!(task.command_line.as_ref(), Some(&before.command_line), "{what}");
        assert_eq!(task.executable.as_ref(), Some(&before.executable), "{what}");
    }
    let stood_still = switches(before) == switches(after);
    if stood_still && !matches!(task.state, 'R' | 'Z') {
        assert_eq!(task.waits_in, before.place, "{what}");
    }
    either(task.start_time_ns / 10_000_000, &|reported| reported.number(19));
    either(task.vsize_pages, &|reported| reported.number(20) / 4096);
    between((task.utime_ns + task.stime_ns) / 10_000_000, 2, &|reported| {
        reported.number(11) + reported.number(12)
    });
    between(task.voluntary_switches, 0, &|reported| reported.status("voluntary_ctxt_switches", 0));
    between(task.involuntary_switches, 0, &|reported| reported.status("nonvoluntary_ctxt_switches", 0));
    // The kernel counts these per CPU and shows an approximate sum.
    if task.rss_pages == 0 {
        assert_eq!(before.number(21), 0, "{what}");
    } else {
        let rss = |reported: &Reported| reported.status("VmRSS", 0) / 4;
        between(task.rss_pages, 400, &|reported| rss(reported));
    }
    assert!(task.views.starts_with("list+pid-idr"), "{what}");
}
