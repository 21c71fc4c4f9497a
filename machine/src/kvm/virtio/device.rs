use retrovisor_guest::MachineError;

use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;

/// A virtio device, without its transport.
///
/// Whatever is in its queues is lawful here: a device answers, or returns [`ProtocolViolation`], and never panics.
pub(crate) trait VirtioDevice: Send {
    /// The kind of device, as virtio numbers it.
    fn kind(&self) -> u32;

    /// Name and version of its state's format; with more of its kind, each has a name of its own: `virtio-block/1:d0`.
    fn format(&self) -> &str;

    /// Features that it offers, apart from those of the transport and the rings.
    fn features(&self) -> u64 {
        0
    }

    /// The greatest size of each of its queues: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration; `data` is zeros before, also where it has none.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// Writes its configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver put something into a queue. Takes chains as long as [`Queues::pop`] gives some: what is left over is
    /// asked for again, after a pause maybe.
    fn notify(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation>;

    /// Takes what came from outside and waits for it, as much as the driver has made room for. The machine runs, and
    /// the driver is ready.
    fn take_input(&mut self, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        let _ = queues;
        Ok(())
    }

    /// The driver starts again.
    fn reset(&mut self);

    /// Its state beside that of its queues.
    fn save(&self) -> Result<Vec<u8>, MachineError> {
        Ok(Vec::new())
    }

    /// Takes a state back that [`VirtioDevice::save`] gave; refuses what is not one and then stays as it was.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let _ = bytes;
        Ok(())
    }
}
