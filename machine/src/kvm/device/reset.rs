use retrovisor_guest::MachineError;

use super::{Device, Outcome, Place};

/// The keyboard controller's command port, which guests use only for a reset.
const PORT: u16 = 0x64;
/// Pulses the processor's reset line.
const COMMAND_RESET: u8 = 0xfe;

/// Ends the machine when the guest asks for a reset.
pub(crate) struct Reset;

impl Device for Reset {
    fn place(&self) -> Place {
        Place::Ports { first: PORT, count: 1 }
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status: nothing to read, ready for a command.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Outcome {
        if data.first() == Some(&COMMAND_RESET) {
            Outcome::End("the guest asked for a reset")
        } else {
            Outcome::Done
        }
    }

    fn format(&self) -> &'static str {
        "reset/1"
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _bytes: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }
}
