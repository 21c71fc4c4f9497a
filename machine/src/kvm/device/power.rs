use retrovisor_guest::MachineError;

use super::{Device, Outcome, Place};
use crate::kvm::boot::{POWER_PORT, POWER_PORTS, SLEEP_ENABLE, SLEEP_TYPE_OFF};

/// ACPI's sleep registers, which guests use only for power-off.
pub(crate) struct Power;

impl Device for Power {
    fn place(&self) -> Place {
        Place::Ports { first: POWER_PORT, count: POWER_PORTS }
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        let off = SLEEP_TYPE_OFF << 2 | SLEEP_ENABLE;
        if offset == 0 && data.first() == Some(&off) {
            Outcome::End("the guest switched itself off")
        } else {
            Outcome::Done
        }
    }

    fn format(&self) -> &'static str {
        "power/1"
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _bytes: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }
}
