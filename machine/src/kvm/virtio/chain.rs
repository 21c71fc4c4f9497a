use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemory, Permissions};

use super::protocol_violation::ProtocolViolation;

/// Bound on the buffers in a chain: twice the number that stock drivers use.
const BUFFERS_MAX: usize = 1024;

/// One request of a driver: buffers to be read, then buffers to be written. All of them are in the guest's memory.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

/// A range of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffer {
    gpa: GuestAddress,
    bytes: usize,
}

impl Chain {
    /// Walks a chain once: later changes by the guest have no effect.
    pub(super) fn collect<M>(chain: DescriptorChain<M>) -> Result<Self, ProtocolViolation>
    where
        M: Deref<Target: GuestMemory + Sized> + Clone,
    {
        let memory = chain.clone();
        let memory = memory.memory();
        let mut collected = Self {
            head: chain.head_index(),
            readable: Vec::with_capacity(4),
            writable: Vec::with_capacity(4),
        };
        for (count, descriptor) in chain.enumerate() {
            if count >= BUFFERS_MAX {
                return Err(ProtocolViolation("a chain of too many buffers"));
            }
            let buffer = Buffer { gpa: descriptor.addr(), bytes: descriptor.len() as usize };
            let writable = descriptor.is_write_only();
            let access = if writable { Permissions::Write } else { Permissions::Read };
            if buffer.gpa.checked_add(buffer.bytes as u64).is_none()
                || !memory.check_range(buffer.gpa, buffer.bytes, access)
            {
                return Err(ProtocolViolation("a buffer that is not memory"));
            }
            if writable {
                collected.writable.push(buffer);
            } else if collected.writable.is_empty() {
                collected.readable.push(buffer);
            } else {
                return Err(ProtocolViolation("a buffer to be read after one to be written"));
            }
        }
        Ok(collected)
    }

    /// The number that identifies the request for the driver.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes in all buffers.
    pub(crate) fn bytes(&self) -> usize {
        self.reader().left() + self.writer().left()
    }

    /// The bytes to be read, from the first on.
    pub(crate) fn reader(&self) -> Cursor<'_> {
        Cursor { buffers: &self.readable, done: 0 }
    }

    /// The bytes to be written, from the first on.
    pub(crate) fn writer(&self) -> Cursor<'_> {
        Cursor { buffers: &self.writable, done: 0 }
    }
}

/// A place in a request's buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    buffers: &'a [Buffer],
    /// Of the first buffer.
    done: usize,
}

impl<'a> Cursor<'a> {
    /// Bytes from here to the end. Chains have less than 4 GiB.
    pub(crate) fn left(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.bytes).sum::<usize>() - self.done
    }

    /// Reads as much as there is; returns the number of bytes.
    pub(crate) fn read(
        &mut self,
        memory: &impl GuestMemory,
        mut into: &mut [u8],
    ) -> Result<usize, ProtocolViolation> {
        let wanted = into.len();
        while let Some((gpa, bytes)) = self.piece(into.len()) {
            let (now, later) = into.split_at_mut(bytes);
            memory.read_slice(now, gpa).map_err(|_| ProtocolViolation("a buffer cannot be read"))?;
            into = later;
        }
        Ok(wanted - into.len())
    }

    /// Writes as much as there is room for; returns the number of bytes.
    pub(crate) fn write(
        &mut self,
        memory: &impl GuestMemory,
        mut from: &[u8],
    ) -> Result<usize, ProtocolViolation> {
        let wanted = from.len();
        while let Some((gpa, bytes)) = self.piece(from.len()) {
            let (now, later) = from.split_at(bytes);
            memory.write_slice(now, gpa).map_err(|_| ProtocolViolation("a buffer cannot be written"))?;
            from = later;
        }
        Ok(wanted - from.len())
    }

    /// Advances by at most this many bytes.
    pub(crate) fn skip(&mut self, mut bytes: usize) {
        while let Some((_, skipped)) = self.piece(bytes) {
            bytes -= skipped;
        }
    }

    /// Splits off the part past `bytes`.
    pub(crate) fn rest_after(&self, bytes: usize) -> Cursor<'a> {
        let mut rest = *self;
        rest.skip(bytes);
        rest
    }

    /// Up to `bytes` bytes within one buffer; advances past them.
    fn piece(&mut self, bytes: usize) -> Option<(GuestAddress, usize)> {
        while let Some(buffer) = self.buffers.first() {
            let left = buffer.bytes - self.done;
            if left == 0 {
                (self.buffers, self.done) = (&self.buffers[1..], 0);
                continue;
            }
            if bytes == 0 {
                return None;
            }
            let piece = (buffer.gpa.unchecked_add(self.done as u64), left.min(bytes));
            self.done += piece.1;
            return Some(piece);
        }
        None
    }
}
