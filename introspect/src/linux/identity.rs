use crate::probe::Probe;

/// Random values that a boot starts with, which distinguish two boots of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BootIdentity {
    direct_map: Option<u64>,
    stack_canary: Option<u64>,
    boot_id: Option<[u8; 16]>,
}

impl BootIdentity {
    pub(crate) fn read(probe: &Probe) -> Self {
        let mut boot_id = [0; 16];
        let read = probe.symbol("sysctl_bootid").and_then(|at| probe.reader.read(at, &mut boot_id));
        Self {
            direct_map: probe.word("page_offset_base"),
            stack_canary: probe.number("init_task", "task_struct", "stack_canary"),
            // The kernel generates the id at the first use: until then it is zero.
            boot_id: read.map(|()| boot_id).filter(|id| id.iter().any(|byte| *byte != 0)),
        }
    }

    /// Whether both can be of one boot. A missing boot id is compatible with any.
    pub(crate) fn is_same_boot(&self, other: &Self) -> bool {
        let ids_agree = self.boot_id.zip(other.boot_id).is_none_or(|(own, other)| own == other);
        ids_agree && (self.direct_map, self.stack_canary) == (other.direct_map, other.stack_canary)
    }
}
