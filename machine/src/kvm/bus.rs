use std::sync::{Mutex, PoisonError};

use retrovisor_guest::MachineError;

use super::device::{Device, Outcome, Place};

/// What vCPUs reach by ports and by addresses that are not memory.
#[derive(Default)]
pub(super) struct Bus {
    devices: Mutex<Vec<Box<dyn Device>>>,
}

/// An access of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Port(u16),
    Memory(u64),
}

impl Bus {
    pub(super) fn new(devices: Vec<Box<dyn Device>>) -> Self {
        Self { devices: Mutex::new(devices) }
    }

    /// Reads; where there is no device, all bits are set, as on a real bus.
    pub(super) fn read(&self, at: Address, data: &mut [u8]) {
        data.fill(0xff);
        self.with(at, |device, offset| {
            device.read(offset, data);
            Outcome::Done
        });
    }

    /// Writes; where there is no device, nothing happens.
    pub(super) fn write(&self, at: Address, data: &[u8]) -> Outcome {
        self.with(at, |device, offset| device.write(offset, data)).unwrap_or(Outcome::Done)
    }

    /// Lets every device take the input that waits for it.
    pub(super) fn take_input(&self) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.iter_mut().for_each(|device| device.take_input());
    }

    /// The devices' states, each with its format.
    pub(super) fn save(&self) -> Result<Vec<(String, Vec<u8>)>, MachineError> {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.iter().map(|device| Ok((device.format().to_owned(), device.save()?))).collect()
    }

    /// Puts the devices' states back; each must be there, in order.
    pub(super) fn restore(&self, states: &[(&str, &[u8])]) -> Result<(), MachineError> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<_> = devices.iter().map(|device| device.format()).collect();
        if known.iter().copied().ne(states.iter().map(|(format, _)| *format)) {
            return Err(MachineError::Mismatch {
                what: "the list of devices".into(),
                expected: states.iter().map(|(format, _)| *format).collect::<Vec<_>>().join(", "),
                found: known.join(", "),
            });
        }
        for (device, (_, bytes)) in devices.iter_mut().zip(states) {
            device.restore(bytes)?;
        }
        Ok(())
    }

    fn with(&self, at: Address, access: impl FnOnce(&mut dyn Device, u64) -> Outcome) -> Option<Outcome> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        for device in devices.iter_mut() {
            let offset = match (device.place(), at) {
                (Place::Ports { first, count }, Address::Port(port)) => {
                    port.checked_sub(first).filter(|offset| *offset < count).map(u64::from)
                }
                _ => None,
            };
            if let Some(offset) = offset {
                return Some(access(&mut **device, offset));
            }
        }
        None
    }
}
