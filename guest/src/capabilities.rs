use crate::{ClockPolicy, MachineError};

/// What a machine can do that not every machine can. Constant for the lifetime of the machine, so a caller can check
/// before it changes anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent yes or no of a driver, asked by name"
)]
pub struct Capabilities {
    /// [`crate::StateIo::apply_state`] accepts [`ClockPolicy::JumpToNow`].
    pub clock_jump: bool,
    /// The contents of every writable disk can be read and written block by block: see [`crate::DiskIo::disks`].
    pub disk_blocks: bool,
    /// Other programs can add and remove vCPUs, memory and disks while the guest runs.
    /// [`crate::StateIo::check_devices`] refuses a machine if that happened.
    pub hot_plug: bool,
    /// [`crate::MemoryIo::write_lines`] writes only the given lines, and not the whole frame.
    pub line_writes: bool,
}

impl Capabilities {
    /// Refuses a clock policy that the machine cannot follow.
    pub fn check_clock(&self, clock: ClockPolicy) -> Result<(), MachineError> {
        if self.clock_jump || clock == ClockPolicy::StandStill {
            return Ok(());
        }
        Err(MachineError::Unsupported {
            what: "moving this guest's clock to the host's time".into(),
            help: "Restore with the clock standing still, and set it in the guest (`hwclock -s`, or NTP)"
                .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_jump_is_refused_where_it_is_impossible() {
        let none = Capabilities::default();
        assert!(none.check_clock(ClockPolicy::StandStill).is_ok());
        assert!(matches!(none.check_clock(ClockPolicy::JumpToNow), Err(MachineError::Unsupported { .. })));
        assert!(Capabilities { clock_jump: true, ..none }.check_clock(ClockPolicy::JumpToNow).is_ok());
    }
}
