//! The state of the vCPUs and devices.

use std::time::Instant;

use retrovisor_guest::{ClockPolicy, DiskState, Machine as _, MachineError, MachineState, StateIo};

use super::{QemuMachine, microseconds, registers};

/// States that QEMU saved and that were read (half a megabyte each) are freed while the guest runs; this many may wait.
const UNTIDY_MAX: usize = 16;

impl StateIo for QemuMachine {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        self.devices.check(&mut self.monitor)
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.needs_pause("capturing the state")?;
        if self.device_state.untidy() > UNTIDY_MAX {
            self.tidy();
        }
        let begin = Instant::now();
        self.devices.begin_capture(&self.monitor)?;
        let text = self.monitor.human("info registers -a")?;
        let driver = |message| MachineError::Driver { doing: "reading the vCPUs' registers".into(), message };
        let mut vcpus = registers::parse(&text).map_err(driver)?;
        if u32::try_from(vcpus.len()) != Ok(self.identity.vcpus) {
            return Err(driver(format!("QEMU showed {} of {} vCPUs", vcpus.len(), self.identity.vcpus)));
        }
        let tag = self.new_tag();
        let nodes = self.disks.nodes();
        let stream = self.device_state.save(&mut self.monitor, &tag, &nodes)?;
        self.needs_uninterrupted_pause()?;
        self.registers.complete(&stream, &mut vcpus);
        let disks = self.disks.names().into_iter().map(|disk| DiskState { disk, reference: tag.clone() });
        let state = MachineState { vcpus, sections: self.shape.sections(stream)?, disks: disks.collect() };
        self.timing.state_us = microseconds(begin);
        Ok(state)
    }

    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        if self.monitor.running() {
            self.tidy();
        }
        if state.disks.is_empty() { Ok(()) } else { self.disks.sync() }
    }

    fn check_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.devices.check(&mut self.monitor)?;
        self.shape.stream_of(state)?;
        self.disks.check_names(state)
    }

    /// The guest's clocks continue from the state: [`ClockPolicy::JumpToNow`] is refused.
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        self.needs_pause("applying a state")?;
        self.capabilities().check_clock(clock)?;
        let stream = self.shape.stream_of(state)?;
        let snapshot = self.disks.target(&mut self.monitor, state)?;
        let begin = Instant::now();
        self.half_applied = true;
        if snapshot.is_none() {
            self.disks.check(&mut self.monitor)?;
        }
        self.disks.forget_written();
        if self.monitor.has_ended() {
            self.monitor.reset()?;
        }
        let (tag, nodes) = match snapshot {
            Some(tag) => (tag, self.disks.nodes()),
            None => (self.new_tag(), Vec::new()),
        };
        self.device_state.load(&mut self.monitor, &tag, &nodes, stream)?;
        self.half_applied = false;
        self.timing.load_us = microseconds(begin);
        Ok(())
    }

    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.disks.release(&mut self.monitor, &state.disks)
    }
}
