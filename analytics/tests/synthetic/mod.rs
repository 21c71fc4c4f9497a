//! A synthetic guest: as noisy as a real one on a busy host, with known faults.
//!
//! Counters follow autocorrelated rates, the host slows it down and speeds it up, bursts come and go, memory drifts,
//! short-lived commands are sometimes caught alive, and the intervals are uneven.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::missing_panics_doc,
    reason = "the numbers are small and made here"
)]

pub mod run;
mod schemas;
pub mod stored;

use retrovisor_guest::fact::{Table, Value};

use schemas::{COUNTER, INTEGRITY, KERNEL, LOG, TASK};

/// `SplitMix64`: the same numbers on every machine.
#[derive(Clone, Copy)]
struct Rng(u64);

impl Rng {
    /// Even between 0 and 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i64,
    pub comm: String,
    pub parent: String,
    pub start_ns: u64,
    pub cpu_ns: f64,
    pub rss: f64,
    pub kernel: bool,
    /// Processors it demands; rewritten by its family's profile.
    pub demand_cpus: f64,
    /// Guest seconds until it ends; `None` for ever.
    pub ends_in_s: Option<f64>,
}

/// What is wrong with the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fault {
    /// Processes that burn a processor each.
    pub burners: usize,
    /// Children started every second, each living two seconds.
    pub children_per_s: f64,
    /// Pages that each burner takes a second, up to `memory_max`.
    pub growth_pages_per_s: f64,
    pub memory_max: f64,
    /// Memory that leaks from the workload itself, in pages a second.
    pub leak_pages_per_s: f64,
    /// The workload hangs: it does nothing any more.
    pub hang: bool,
}

impl Fault {
    pub const RUNAWAY: Self = Self {
        burners: 2,
        children_per_s: 20.0,
        growth_pages_per_s: 2500.0,
        memory_max: 12_288.0,
        leak_pages_per_s: 0.0,
        hang: false,
    };
}

#[derive(Clone)]
pub struct Guest {
    rng: Rng,
    pub cpus: f64,
    pub uptime_s: f64,
    pub processes: Vec<Process>,
    counters: Vec<(&'static str, f64)>,
    levels: Vec<(&'static str, f64)>,
    log_sequence: u64,
    errors: u64,
    next_pid: i64,
    /// Logarithm of the host's slowness, autocorrelated.
    host: f64,
    /// Logarithm of how busy the workload is, autocorrelated.
    mood: f64,
    pub fault: Fault,
    fault_comm: String,
    pub violation: bool,
    /// How busy the guest is, in multiples of the usual.
    pub rush: f64,
    dirty: f64,
    load: f64,
}

impl Guest {
    pub fn new(seed: u64) -> Self {
        let mut guest = Self {
            rng: Rng(seed),
            cpus: if seed.is_multiple_of(2) { 1.0 } else { 2.0 },
            uptime_s: 6.0,
            processes: Vec::new(),
            counters: [
                "pgfault",
                "pgmajfault",
                "pgalloc_dma32",
                "pgalloc_normal",
                "pgfree",
                "total_forks",
                "context_switches",
                "interrupts",
                "cpu_user_ns",
                "cpu_system_ns",
                "cpu_idle_ns",
                "oom_kill",
                "pgsteal_kswapd",
                "pswpout",
            ]
            .map(|name| (name, 1000.0))
            .to_vec(),
            levels: vec![
                ("nr_free_pages", 95_000.0),
                ("nr_anon_pages", 4_000.0),
                ("nr_file_pages", 9_000.0),
                ("nr_slab_reclaimable", 2_000.0),
                ("nr_slab_unreclaimable", 4_000.0),
                ("nr_page_table_pages", 160.0),
            ],
            log_sequence: 400,
            errors: 0,
            next_pid: 100,
            host: 0.0,
            mood: 0.0,
            fault: Fault::default(),
            fault_comm: "runaway".to_owned(),
            violation: false,
            rush: 1.0,
            dirty: 0.0,
            load: 0.1,
        };
        for name in ["kthreadd", "ksoftirqd/0", "kworker/0:0-events", "kworker/u4:1", "kswapd0", "rcu_sched"]
        {
            guest.start(name, "kthreadd", 0.0, 0.0, true, None);
        }
        for (name, parent, rss) in [
            ("init", "", 300.0),
            ("syslogd", "init", 150.0),
            ("klogd", "init", 140.0),
            ("httpd", "init", 200.0),
            ("housekeeper", "init", 210.0),
            ("workload", "init", 2500.0),
        ] {
            guest.start(name, parent, rss, 0.0, false, None);
        }
        guest
    }

    /// A guest that boots: no service runs yet. The services are returned, to be started by [`Self::restart`].
    pub fn booting(seed: u64) -> (Self, Vec<Process>) {
        let mut guest = Self::new(seed);
        guest.rush = 12.0;
        let (services, kept) = guest.processes.into_iter().partition(|p| !p.kernel && p.comm != "init");
        guest.processes = kept;
        (guest, services)
    }

    /// Starts a service of a booting guest.
    pub fn restart(&mut self, service: &Process) {
        self.start(&service.comm, &service.parent, service.rss, service.demand_cpus, false, None);
    }

    /// Starts a service that uses a share of a processor.
    pub fn start_service(&mut self, comm: &str, rss: f64, demand_cpus: f64) {
        self.start(comm, "init", rss, demand_cpus, false, None);
        *self.level("nr_anon_pages") += rss;
        *self.level("nr_free_pages") -= rss;
    }

    fn start(
        &mut self,
        comm: &str,
        parent: &str,
        rss: f64,
        demand_cpus: f64,
        kernel: bool,
        ends_in_s: Option<f64>,
    ) {
        // Pids are reused, as in a guest that wraps around.
        self.next_pid = 100 + (self.next_pid - 99) % 32_000;
        let start_ns = (self.uptime_s * 1e9) as u64 + self.next_pid as u64;
        self.processes.push(Process {
            pid: self.next_pid,
            comm: comm.to_owned(),
            parent: parent.to_owned(),
            start_ns,
            cpu_ns: 0.0,
            rss,
            kernel,
            demand_cpus,
            ends_in_s,
        });
    }

    /// A standard normal number.
    fn normal(&mut self) -> f64 {
        let (a, b) = (self.rng.roll().max(1e-12), self.rng.roll());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    fn uniform(&mut self) -> f64 {
        self.rng.roll()
    }

    /// A number of events around a mean, clumped.
    fn events(&mut self, mean: f64) -> f64 {
        (mean + (1.5 * mean).max(0.0).sqrt() * self.normal()).max(0.0).round()
    }

    fn count(&mut self, name: &str, by: f64) {
        let counter = self.counters.iter_mut().find(|(have, _)| *have == name).expect("a known counter");
        counter.1 += by.max(0.0);
    }

    fn level(&mut self, name: &str) -> &mut f64 {
        &mut self.levels.iter_mut().find(|(have, _)| *have == name).expect("a known level").1
    }

    /// Begins a fault by processes of this name.
    pub fn inject(&mut self, fault: Fault, comm: &str) {
        self.fault = fault;
        comm.clone_into(&mut self.fault_comm);
        self.start(comm, "shell-on-port", 200.0, 0.02, false, None);
        for _ in 0..fault.burners {
            self.start(comm, comm, 300.0, 1.0, false, None);
        }
    }

    /// Lets guest time pass.
    pub fn run(&mut self, seconds: f64) {
        self.host = 0.6 * self.host + 0.25 * self.normal();
        self.mood = 0.8 * self.mood + 0.1 * self.normal();
        let slow = self.host.exp();
        let busy = if self.fault.hang { 0.0 } else { self.rush * self.mood.exp() / slow };
        // Now and then something out of the ordinary happens, and means nothing.
        let burst = if self.uniform() < 0.04 { 1.0 + 4.0 * self.uniform() } else { 1.0 };

        self.processes.retain_mut(|p| match &mut p.ends_in_s {
            Some(left) => {
                *left -= seconds;
                *left > 0.0
            }
            None => true,
        });
        for name in ["cat", "wc", "logger", "sleep"] {
            let chance = if name == "sleep" { 0.95 } else { 0.06 };
            if self.uniform() < chance {
                self.start(name, "housekeeper", 90.0, 0.01, false, Some(0.01));
            }
        }
        if self.uniform() < 0.1 {
            self.start("kworker/u4:3-flush", "kthreadd", 0.0, 0.0, true, Some(3.0));
        }
        self.uptime_s += seconds;
        let children = self.events(self.fault.children_per_s * seconds);
        let alive = self.fault.children_per_s * seconds.min(2.0);
        let comm = self.fault_comm.clone();
        for _ in 0..children.min(alive) as usize {
            self.start(&comm, &comm, 120.0, 0.002, false, Some(2.0));
        }

        let mut wanted: Vec<f64> = Vec::new();
        for at in 0..self.processes.len() {
            let noise = (0.3 * self.normal()).exp();
            let process = &self.processes[at];
            wanted.push(match process.comm.as_str() {
                "workload" => 0.12 * busy * slow * slow.min(2.0) * noise,
                "housekeeper" => 0.02 * busy * noise,
                "httpd" | "syslogd" | "klogd" => 0.001 * busy * noise,
                _ => process.demand_cpus,
            });
        }
        let total: f64 = wanted.iter().sum::<f64>().max(1e-9);
        let fit = (self.cpus / total).min(1.0);
        let mut used = 0.0;
        for (process, wanted) in self.processes.iter_mut().zip(&wanted) {
            process.cpu_ns += wanted * fit * seconds * 1e9;
            used += wanted * fit * seconds;
        }
        let growing = self.fault.growth_pages_per_s * seconds;
        let leak = self.fault.leak_pages_per_s * seconds;
        let mut grown = 0.0;
        for process in &mut self.processes {
            let more = match process.comm.as_str() {
                name if name == comm && process.demand_cpus >= 1.0 => {
                    growing.min(self.fault.memory_max - process.rss)
                }
                "workload" => leak,
                _ => 0.0,
            };
            process.rss += more.max(0.0);
            grown += more.max(0.0);
        }
        let forks = self.events(1.6 * seconds) + children;
        let allocations = self.events(260.0 * busy * seconds * burst) + grown + 120.0 * children;
        self.count("total_forks", forks);
        let switches = self.events(180.0 * seconds * (0.5 + busy) * burst) + 40.0 * children;
        self.count("context_switches", switches);
        let interrupts =
            self.events(120.0 * seconds * (0.7 + busy)) + 250.0 * (used - 0.2 * seconds).max(0.0);
        self.count("interrupts", interrupts);
        let faults = self.events(220.0 * seconds * busy * burst) + grown + 150.0 * children;
        self.count("pgfault", faults);
        let major = if self.uniform() < 0.03 { 2.0 } else { 0.0 };
        self.count("pgmajfault", major);
        self.count("pgalloc_dma32", allocations);
        let frees = self.events(250.0 * busy * seconds * burst) + 115.0 * children;
        self.count("pgfree", frees);
        self.count("cpu_user_ns", 0.6 * used * 1e9);
        self.count("cpu_system_ns", 0.4 * used * 1e9);
        self.count("cpu_idle_ns", (self.cpus * seconds - used).max(0.0) * 1e9);
        let file_growth = self.events(12.0 * seconds);
        let jitter = 20.0 * self.normal();
        *self.level("nr_free_pages") -= grown + leak + file_growth - jitter;
        *self.level("nr_anon_pages") += grown + 0.3 * jitter;
        *self.level("nr_file_pages") += file_growth;
        *self.level("nr_slab_unreclaimable") += 0.2 * jitter + 6.0 * children;
        self.load = 0.96 * self.load + 0.04 * used / seconds;
        let lines = u64::from(self.uniform() < 0.1);
        self.log_sequence += lines;
        self.dirty = (self.events(450.0 * seconds * busy * burst) + grown + 30.0 * children).max(20.0);
    }

    pub fn tables(&self) -> Vec<Table> {
        let number = |value: f64| Value::Integer(value.max(0.0) as i64);
        let task = |p: &Process| {
            vec![
                Value::Integer(p.pid),
                Value::Integer(p.pid),
                Value::Integer(1),
                p.comm.as_str().into(),
                p.parent.as_str().into(),
                if p.demand_cpus >= 1.0 { "R".into() } else { "S".into() },
                Value::from(p.start_ns),
                number(0.6 * p.cpu_ns),
                number(0.4 * p.cpu_ns),
                number(p.rss),
                Value::from(p.kernel),
            ]
        };
        let mut counters: Vec<Vec<Value>> = self
            .counters
            .iter()
            .chain(&self.levels)
            .map(|(name, value)| vec![(*name).into(), number(*value)])
            .collect();
        counters.push(vec!["load1".into(), number(100.0 * self.load)]);
        let log = (self.log_sequence.saturating_sub(20)..=self.log_sequence)
            .map(|n| vec![n.into(), (n * 1000).into(), Value::Integer(6), format!("line {n}").into()])
            .collect();
        let hook = [
            "syscall_redirected",
            "getppid",
            "__x64_sys_getppid",
            "sys_call_table[110]",
            "0xffffffff81000000",
            "0xffffffffc0000000",
        ];
        vec![
            Table {
                schema: &KERNEL,
                rows: vec![vec![
                    "6.1.0".into(),
                    Value::from((self.uptime_s * 1e9) as u64),
                    number(self.cpus),
                ]],
            },
            Table { schema: &TASK, rows: self.processes.iter().map(task).collect() },
            Table { schema: &COUNTER, rows: counters },
            Table { schema: &LOG, rows: log },
            Table {
                schema: &INTEGRITY,
                rows: self.violation.then(|| hook.map(Value::from).to_vec()).into_iter().collect(),
            },
        ]
    }
}
