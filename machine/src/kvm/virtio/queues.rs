use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::chain::Chain;
use super::dirty::DirtyLog;
use super::memory::DeviceMemory;
use super::protocol_violation::ProtocolViolation;

/// Chains that are processed in one portion, and bytes: a pause may wait for one portion.
const CHAINS_MAX: usize = 32;
const BYTES_MAX: usize = 256 << 10;

/// The queues of a device, for one portion of its work.
pub(crate) struct Queues<'a> {
    memory: &'a DeviceMemory,
    rings: &'a mut [Queue],
    chains: usize,
    bytes: usize,
    behind: bool,
    /// Queues whose driver is to be notified, a bit each.
    used: u64,
}

impl<'a> Queues<'a> {
    pub(super) fn new(memory: &'a DeviceMemory, rings: &'a mut [Queue]) -> Self {
        Self { memory, rings, chains: 0, bytes: 0, behind: false, used: 0 }
    }

    /// The guest's memory, which contains the chains.
    pub(crate) fn memory(&self) -> &'a GuestMemoryMmap<DirtyLog> {
        self.memory.map()
    }

    /// The next request in a queue. `None`: there is none, or the portion is complete.
    pub(crate) fn pop(&mut self, queue: usize) -> Result<Option<Chain>, ProtocolViolation> {
        let Some(queue) = self.rings.get_mut(queue).filter(|queue| queue.ready()) else { return Ok(None) };
        let enough = self.chains >= CHAINS_MAX || self.bytes >= BYTES_MAX;
        let memory = self.memory.map();
        let mut available =
            queue.iter(memory).map_err(|_| ProtocolViolation("an available ring that cannot be"))?;
        let Some(chain) = available.next() else { return Ok(None) };
        if enough {
            available.go_to_previous_position();
            self.behind = true;
            return Ok(None);
        }
        let chain = Chain::collect(chain)?;
        self.chains += 1;
        self.bytes = self.bytes.saturating_add(chain.bytes());
        Ok(Some(chain))
    }

    /// Returns the request that [`Queues::pop`] returned last, which will return it again. For a device that has no
    /// response yet.
    pub(crate) fn put_back(&mut self, queue: usize) {
        if let Some(queue) = self.rings.get_mut(queue) {
            queue.go_to_previous_position();
        }
    }

    /// The fixed cost of a request, as the number of bytes that could be copied in that time.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Completes a request; `written` bytes of its buffers were written.
    pub(crate) fn push(
        &mut self,
        queue: usize,
        chain: &Chain,
        written: usize,
    ) -> Result<(), ProtocolViolation> {
        let Some(ring) = self.rings.get_mut(queue) else { return Ok(()) };
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        ring.add_used(self.memory.map(), chain.head(), written)
            .map_err(|_| ProtocolViolation("a request with a number that the queue does not have"))?;
        self.used |= 1 << queue;
        Ok(())
    }

    /// Whether requests are left only because the portion is complete.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// Whether the driver wants to be notified of what was used.
    pub(super) fn wants_interrupt(&self) -> bool {
        // The driver clears its flag and then checks for used buffers: read the flag only after they are there.
        fence(Ordering::SeqCst);
        let mut used = self.rings.iter().enumerate().filter(|(at, _)| self.used >> at & 1 == 1);
        used.any(|(_, queue)| {
            let flags: u16 = self.memory.map().read_obj(GuestAddress(queue.avail_ring())).unwrap_or(0);
            u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        })
    }
}
