use std::collections::BTreeMap;

use crate::{
    btf::Field,
    fact::{Task, Violation, ViolationKind},
    hash::{IntegerMap, IntegerSet},
    probe::Probe,
};

/// The rights of each process at the last observation.
#[derive(Default)]
pub(crate) struct Forgeries {
    /// By address of the task.
    held: IntegerMap<u64, Held>,
    uptime_ns: u64,
}

/// A process without root's rights: it can gain them only by executing a program.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    start_time_ns: u64,
    pid: i32,
    memory: u64,
    executions: u64,
}

struct Fields {
    credential: Field,
    memory: Field,
    executions: Field,
    uid: Field,
    euid: Field,
    suid: Field,
    permitted: Field,
    namespace: Option<Field>,
    user: Option<(Field, Field)>,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let task = |path: &str| probe.field("task_struct", path);
        let cred = |path: &str| probe.field("cred", path);
        Some(Self {
            credential: task("real_cred")?,
            memory: task("mm")?,
            executions: task("self_exec_id")?,
            uid: cred("uid.val")?,
            euid: cred("euid.val")?,
            suid: cred("suid.val")?,
            permitted: cred("cap_permitted")?,
            namespace: cred("user_ns"),
            user: cred("user").zip(probe.field("user_struct", "uid.val")),
        })
    }
}

impl Forgeries {
    /// Drops the state of the last observation.
    pub(crate) fn forget(&mut self) {
        self.held.clear();
    }

    /// Credentials that no process can have by the kernel's rules: another process's, one outside the allocator's cache
    /// for credentials, one whose user id is not that of its user structure, and root's rights gained without executing
    /// a program.
    pub(crate) fn check(&mut self, probe: &Probe, tasks: &[Task], uptime_ns: Option<u64>) -> Vec<Violation> {
        // After a rollback the last observation is later than this one.
        let uptime_ns = uptime_ns.unwrap_or(0);
        if uptime_ns < self.uptime_ns {
            self.held.clear();
        }
        self.uptime_ns = uptime_ns;
        let Some(fields) = Fields::of(probe) else { return Vec::new() };
        let mut violations = Vec::new();
        let mut sharers: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
        let mut held = IntegerMap::default();
        for task in tasks.iter().filter(|task| !matches!(task.state, 'X' | 'Z')) {
            let credential = probe.reader.pointer(task.address, fields.credential).filter(|at| *at != 0);
            let Some(credential) = credential else { continue };
            sharers.entry(credential).or_default().push(task);
            if let Some(now) = self.examine(probe, &fields, task, credential, &mut violations) {
                held.insert(task.address, now);
            }
        }
        self.held = held;
        // A task with several violations is reported once.
        let mut violations = [shared(probe, &sharers), violations].concat();
        let mut reported = IntegerSet::default();
        violations.retain(|(address, _)| reported.insert(*address));
        violations.into_iter().map(|(_, violation)| violation).collect()
    }

    /// Examines one task. Returns what the next observation needs if the task has no capabilities, or should have none.
    fn examine(
        &self,
        probe: &Probe,
        fields: &Fields,
        task: &Task,
        credential: u64,
        violations: &mut Vec<(u64, Violation)>,
    ) -> Option<Held> {
        let reader = probe.reader;
        let id = |field: Field| reader.number(credential, field);
        let (uid, euid, suid) = (id(fields.uid)?, id(fields.euid)?, id(fields.suid)?);
        let owner = fields.user.and_then(|(user, of_user)| {
            let user = reader.pointer(credential, user).filter(|user| *user != 0)?;
            reader.number(user, of_user)
        });
        if is_outside_cache(probe, credential) == Some(true) {
            violations.push(forged(
                task,
                "its credential is not in the kernel's cache of credentials",
                "an object of cred_jar",
                format!("{credential:#018x}"),
            ));
        } else if let Some(owner) = owner.filter(|owner| *owner != uid) {
            violations.push(forged(
                task,
                "its credential was overwritten: the user it belongs to has another id",
                &format!("uid {owner}"),
                format!("uid {uid}"),
            ));
        }
        let memory = reader.pointer(task.address, fields.memory).filter(|memory| *memory != 0)?;
        let executions = reader.number(task.address, fields.executions)?;
        let now = Held { start_time_ns: task.start_time_ns, pid: task.pid, memory, executions };
        // Capabilities in a user namespace of its own are not valid in the first namespace.
        let namespace = fields.namespace.and_then(|field| reader.pointer(credential, field));
        let first = namespace.is_none_or(|namespace| Some(namespace) == probe.symbol("init_user_ns"));
        let capable = first && reader.number(credential, fields.permitted).unwrap_or(0) != 0;
        let root = uid == 0 || euid == 0;
        let escalated = (root || capable) && self.held.get(&task.address) == Some(&now);
        if escalated {
            let found = if root { format!("uid {uid}, euid {euid}") } else { "capabilities".into() };
            violations.push(forged(
                task,
                "it gained the rights of root without executing anything",
                "none",
                found,
            ));
        }
        let powerless = !root && suid != 0 && !capable;
        // Rights that were gained without an execution are reported in every later observation.
        (powerless || escalated).then_some(now)
    }
}

fn forged(task: &Task, detail: &str, expected: &str, found: String) -> (u64, Violation) {
    let violation = Violation {
        kind: ViolationKind::ForgedCredential,
        object: format!("task {} ({})", task.pid, task.comm),
        symbol: None,
        detail: detail.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    (task.address, violation)
}

/// Threads of a process share its credential; different processes never do, and only the idle tasks use `init_cred`.
fn shared(probe: &Probe, sharers: &BTreeMap<u64, Vec<&Task>>) -> Vec<(u64, Violation)> {
    let init = probe.symbol("init_cred");
    let mut violations = Vec::new();
    for (credential, tasks) in sharers {
        let of_init = Some(*credential) == init;
        let Some(oldest) = tasks.iter().min_by_key(|task| (task.start_time_ns, task.pid)) else { continue };
        let whose = if of_init {
            "init_cred".to_owned()
        } else {
            format!("that of task {} ({})", oldest.pid, oldest.comm)
        };
        let mut reported = IntegerSet::default();
        for task in tasks.iter().filter(|task| of_init || task.tgid != oldest.tgid) {
            if reported.insert(task.tgid.cast_unsigned()) {
                violations.push(forged(task, "its credential is another's", "one of its own", whose.clone()));
            }
        }
    }
    violations
}

/// Whether a credential is outside the allocator's cache for credentials; `None` when that cannot be determined.
fn is_outside_cache(probe: &Probe, credential: u64) -> Option<bool> {
    let cache = probe.word("cred_jar").filter(|cache| *cache != 0)?;
    if Some(credential) == probe.symbol("init_cred") {
        return Some(false);
    }
    let base = probe.word("vmemmap_base")?;
    let size = probe.types.size_of("page")?;
    let field = probe.field("slab", "slab_cache").or_else(|| probe.field("page", "slab_cache"))?;
    let frame = probe.reader.translate(credential)?.gfn();
    let mut page = base.checked_add(frame.0.checked_mul(size)?)?;
    // A page that is not the first of several refers to the first, with the lowest bit set.
    let head = probe.field("page", "compound_head").or_else(|| probe.field("page", "compound_info"))?;
    let link = probe.reader.pointer(page, head)?;
    if link & 1 == 1 {
        probe.field("page", "compound_head")?;
        page = link - 1;
    }
    Some(probe.reader.pointer(page, field)? != cache)
}
