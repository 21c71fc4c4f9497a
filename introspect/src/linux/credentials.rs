use crate::{btf::Field, probe::Probe};

/// The fields of a task and of its credentials.
pub(crate) struct Fields {
    real: Option<Field>,
    uid: Option<Field>,
    gid: Option<Field>,
    euid: Option<Field>,
    egid: Option<Field>,
    capabilities: Option<Field>,
}

/// The identity and the rights of a task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) euid: Option<u32>,
    pub(crate) egid: Option<u32>,
    /// The effective capabilities.
    pub(crate) capabilities: Option<u64>,
}

impl Fields {
    pub(crate) fn of(probe: &Probe) -> Self {
        let cred = |path: &str| probe.field("cred", path);
        Self {
            real: probe.field("task_struct", "real_cred"),
            uid: cred("uid.val"),
            gid: cred("gid.val"),
            euid: cred("euid.val"),
            egid: cred("egid.val"),
            capabilities: cred("cap_effective"),
        }
    }

    pub(crate) fn read(&self, probe: &Probe, task: u64) -> Credentials {
        let reader = probe.reader;
        // The objective credentials (`real_cred`), as in /proc.
        let real = self.real.and_then(|real| reader.pointer(task, real)).filter(|cred| *cred != 0);
        let id = |field: Option<Field>| u32::try_from(reader.number(real?, field?)?).ok();
        // Two words of 32 bits; since 6.3 one of 64.
        let capabilities = || {
            let at = real?.checked_add(self.capabilities?.offset_bytes)?;
            reader.u64(at)
        };
        Credentials {
            uid: id(self.uid),
            gid: id(self.gid),
            euid: id(self.euid),
            egid: id(self.egid),
            capabilities: capabilities(),
        }
    }
}
