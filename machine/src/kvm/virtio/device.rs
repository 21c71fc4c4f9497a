use retrovisor_guest::MachineError;

use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;

/// A virtio device, without its transport.
///
/// Its queues may contain anything: a device responds, or returns [`ProtocolViolation`], and never panics.
pub(crate) trait VirtioDevice: Send {
    /// The virtio number of the kind of device.
    fn kind(&self) -> u32;

    /// Name and version of its state's format; if there are several devices of a kind, each has a name of its own:
    /// `virtio-block/1:d0`.
    fn format(&self) -> &str;

    /// The features that it offers, apart from those of the transport and the rings.
    fn features(&self) -> u64 {
        0
    }

    /// The greatest size of each of its queues: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration; `data` is zeros before, also past its end.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// Writes its configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver notified a queue. Takes chains as long as [`Queues::pop`] returns some; the rest is processed in a
    /// later call, possibly after a pause.
    fn notify(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation>;

    /// Accepts input from outside that waits for the device, as much as the driver has provided room for. The machine
    /// runs, and the driver is ready.
    fn take_input(&mut self, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        let _ = queues;
        Ok(())
    }

    /// The driver resets the device.
    fn reset(&mut self);

    /// Its state besides that of its queues.
    fn save(&self) -> Result<Vec<u8>, MachineError> {
        Ok(Vec::new())
    }

    /// Restores a state from [`VirtioDevice::save`]; refuses an invalid one without any change.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let _ = bytes;
        Ok(())
    }
}
