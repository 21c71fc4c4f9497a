use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};

/// The registers of a transport.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) interrupt_status: u32,
    pub(super) config_generation: u32,
    /// Queues that the driver has notified and that are not done, one bit each.
    pub(super) behind: u64,
}

/// A transport with its device.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) registers: Registers,
    pub(super) queues: Vec<SavedQueue>,
    pub(super) device: Vec<u8>,
}

/// A queue.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct SavedQueue {
    next_avail: u16,
    next_used: u16,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<&Queue> for SavedQueue {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            next_avail: state.next_avail,
            next_used: state.next_used,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl SavedQueue {
    /// The queue, if it is valid for that greatest size.
    pub(super) fn queue(&self, max_size: u16) -> Option<Queue> {
        let state = QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        };
        Queue::try_from(state).ok()
    }
}
