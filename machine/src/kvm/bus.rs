use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::MachineError;

use super::device::{Device, Outcome, Place};

/// What vCPUs reach by ports and by addresses that are not memory.
#[derive(Default)]
pub(super) struct Bus {
    devices: Vec<Slot>,
}

/// A device, under a lock of its own, and where it answers.
struct Slot {
    place: Place,
    device: Arc<Mutex<dyn Device>>,
}

/// An access of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Port(u16),
    Memory(u64),
}

impl Bus {
    /// Adds a device; what is returned is for work on it from outside of the guest.
    pub(super) fn add<D: Device + 'static>(&mut self, device: D) -> Arc<Mutex<D>> {
        let place = device.place();
        let device = Arc::new(Mutex::new(device));
        self.devices.push(Slot { place, device: Arc::clone(&device) as Arc<Mutex<dyn Device>> });
        device
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
        self.devices.iter().for_each(|slot| slot.lock().take_input());
    }

    /// Does what devices were asked for and have not done yet, until `stop` returns true.
    pub(super) fn catch_up(&self, stop: impl Fn() -> bool) {
        for slot in &self.devices {
            while !stop() && slot.lock().catch_up() {}
        }
    }

    /// The devices' states, each with its format.
    pub(super) fn save(&self) -> Result<Vec<(String, Vec<u8>)>, MachineError> {
        let save = |slot: &Slot| {
            let device = slot.lock();
            Ok((device.format().to_owned(), device.save()?))
        };
        self.devices.iter().map(save).collect()
    }

    /// Puts the devices' states back; each must be there, in order.
    pub(super) fn restore(&self, states: &[(&str, &[u8])]) -> Result<(), MachineError> {
        let known: Vec<_> = self.devices.iter().map(|slot| slot.lock().format().to_owned()).collect();
        if known.iter().map(String::as_str).ne(states.iter().map(|(format, _)| *format)) {
            return Err(MachineError::Mismatch {
                what: "the list of devices".into(),
                expected: states.iter().map(|(format, _)| *format).collect::<Vec<_>>().join(", "),
                found: known.join(", "),
            });
        }
        for (slot, (_, bytes)) in self.devices.iter().zip(states) {
            slot.lock().restore(bytes)?;
        }
        Ok(())
    }

    fn with(&self, at: Address, access: impl FnOnce(&mut dyn Device, u64) -> Outcome) -> Option<Outcome> {
        let found = self.devices.iter().find_map(|slot| Some((slot, slot.place.offset(at)?)));
        found.map(|(slot, offset)| access(&mut *slot.lock(), offset))
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, dyn Device + 'static> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// How far into the place an access goes, if it goes there.
    fn offset(self, at: Address) -> Option<u64> {
        match (self, at) {
            (Self::Ports { first, count }, Address::Port(port)) => {
                port.checked_sub(first).filter(|offset| *offset < count).map(u64::from)
            }
            (Self::Memory { first, bytes }, Address::Memory(gpa)) => {
                gpa.checked_sub(first.0).filter(|offset| *offset < bytes)
            }
            _ => None,
        }
    }
}
