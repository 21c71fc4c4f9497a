use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::VirtioDevice;
use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;

/// Bytes that one request gets at most; drivers ask again.
const BYTES_MAX: usize = 4096;

/// The host's random numbers for the guest. It has no state: after a rollback a guest gets other numbers than before.
pub(crate) struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn format(&self) -> &'static str {
        "virtio-rng/1"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        let mut bytes = [0; BYTES_MAX];
        while let Some(chain) = queues.pop(queue)? {
            let mut writer = chain.writer();
            let wanted = &mut bytes[..writer.left().min(BYTES_MAX)];
            let got = rustix::rand::getrandom(&mut *wanted, rustix::rand::GetRandomFlags::empty());
            let written = writer.write(queues.memory(), &wanted[..got.unwrap_or(0)])?;
            queues.push(queue, &chain, written)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}
