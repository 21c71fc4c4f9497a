use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes that wait.
const WAITING_BYTES_MAX: usize = 64 << 10;

/// Bytes on their way into the guest, for which its device has no room yet.
#[derive(Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<VecDeque<u8>>>);

impl Pending {
    /// Appends as many bytes as there is room for; returns their number.
    pub(crate) fn push(&self, bytes: &[u8]) -> usize {
        let mut queue = self.lock();
        let taken = bytes.len().min(WAITING_BYTES_MAX.saturating_sub(queue.len()));
        queue.extend(&bytes[..taken]);
        taken
    }

    /// Shows the first bytes, up to `most` of them, and removes as many as `take` returns.
    pub(crate) fn offer(&self, most: usize, take: impl FnOnce(&[u8]) -> usize) {
        let mut queue = self.lock();
        let shown = most.min(queue.len());
        if shown > 0 {
            let taken = take(&queue.make_contiguous()[..shown]);
            queue.drain(..taken.min(shown));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_not_taken() {
        let pending = Pending::default();
        assert_eq!(pending.push(&vec![1; WAITING_BYTES_MAX - 1]), WAITING_BYTES_MAX - 1);
        assert_eq!(pending.push(b"xy"), 1);
        assert_eq!(pending.push(b"y"), 0);
        pending.offer(10, |bytes| {
            assert_eq!(bytes, [1; 10]);
            4
        });
        assert_eq!(pending.push(b"123456"), 4);
        assert_eq!(pending.len(), WAITING_BYTES_MAX);
        pending.clear();
        assert_eq!(pending.len(), 0);
        pending.offer(10, |_| panic!("nothing waits"));
    }
}
