use std::sync::PoisonError;

use retrovisor_guest::MachineError;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::chain::{Chain, Cursor};
use super::device::VirtioDevice;
use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;
use crate::kvm::disk::{Overlay, SharedOverlay};
use crate::kvm::state::{decode, encode};

const SECTOR_BYTES: u64 = 512;
const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request, and bytes in each: bounds that a driver must keep.
const SEG_MAX: u32 = 64;
const SIZE_MAX: u32 = 64 << 10;
const REQUEST_BYTES_MAX: usize = SEG_MAX as usize * SIZE_MAX as usize;
/// Bound on one range of a discard.
const DISCARD_SECTORS_MAX: u32 = (16 << 20) >> 9;
/// Ranges in a request.
const RANGES_MAX: u32 = 4;
/// Sectors in a block ([`retrovisor_guest::BLOCK_SIZE`]), as a power of two.
const SECTORS_A_BLOCK: u8 = 3;
const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
/// Bytes that are copied at once.
const PIECE_BYTES: usize = 64 << 10;

/// A disk.
pub(crate) struct Block {
    overlay: SharedOverlay,
    format: String,
    config: Vec<u8>,
    shape: Shape,
    id: String,
    piece: Vec<u8>,
}

/// The properties that must be equal when a state is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    size_bytes: u64,
    read_only: bool,
}

/// How a request ended.
enum Failure {
    /// The disk failed.
    Disk,
    /// The device does not support the request.
    Unsupported,
    /// The driver violated the protocol.
    Violation(ProtocolViolation),
}

impl From<ProtocolViolation> for Failure {
    fn from(violation: ProtocolViolation) -> Self {
        Self::Violation(violation)
    }
}

impl Block {
    pub(crate) fn new(overlay: SharedOverlay) -> Self {
        let (id, shape) = {
            let overlay = overlay.lock().unwrap_or_else(PoisonError::into_inner);
            let size_bytes = overlay.shape().size_bytes;
            (overlay.shape().name.clone(), Shape { size_bytes, read_only: overlay.is_read_only() })
        };
        Self {
            overlay,
            format: format!("virtio-block/1:{id}"),
            config: config_space(shape.size_bytes),
            shape,
            id,
            piece: vec![0; PIECE_BYTES],
        }
    }

    /// Executes a request; returns how many bytes of its buffers were written before the status.
    fn serve(&mut self, chain: &Chain, queues: &mut Queues<'_>) -> Result<usize, Failure> {
        let memory = queues.memory();
        let mut reader = chain.reader();
        let mut header = [0; HEADER_BYTES];
        if reader.read(memory, &mut header)? != HEADER_BYTES {
            return Err(ProtocolViolation("a block request without a header").into());
        }
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap_or_default());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Disk)?;
        // The last byte is for the status.
        let room = chain.writer().left().saturating_sub(1);
        let overlay = std::sync::Arc::clone(&self.overlay);
        let mut disk = overlay.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            VIRTIO_BLK_T_IN => {
                self.check(offset, room)?;
                let mut writer = chain.writer();
                let mut done = 0;
                while done < room {
                    let piece = &mut self.piece[..PIECE_BYTES.min(room - done)];
                    disk.read(offset + done as u64, piece).map_err(failed)?;
                    done += writer.write(memory, piece)?;
                }
                Ok(done)
            }
            VIRTIO_BLK_T_OUT => {
                self.needs_writable()?;
                let length = reader.left();
                self.check(offset, length)?;
                let mut done = 0;
                while done < length {
                    let piece = &mut self.piece[..PIECE_BYTES.min(length - done)];
                    done += reader.read(memory, piece)?;
                    disk.write(offset + (done - piece.len()) as u64, piece).map_err(failed)?;
                }
                Ok(0)
            }
            // A write is as durable as the checkpoint that contains it: a flush has nothing to do.
            VIRTIO_BLK_T_FLUSH => Ok(0),
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                id.iter_mut().zip(self.id.bytes()).for_each(|(into, byte)| *into = byte);
                let wanted = room.min(id.len());
                Ok(chain.writer().write(memory, &id[..wanted])?)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.needs_writable()?;
                self.zero(&mut disk, reader, queues)?;
                Ok(0)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Writes zeros to ranges: a discarded range may have any contents, and zeros take no room.
    fn zero(
        &self,
        disk: &mut Overlay,
        mut reader: Cursor<'_>,
        queues: &mut Queues<'_>,
    ) -> Result<(), Failure> {
        let bytes = reader.left();
        if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES) || bytes > RANGES_MAX as usize * RANGE_BYTES {
            return Err(Failure::Disk);
        }
        let mut range = [0; RANGE_BYTES];
        while reader.read(queues.memory(), &mut range)? == RANGE_BYTES {
            let sector = u64::from_le_bytes(range[..8].try_into().unwrap_or_default());
            let count = u32::from_le_bytes(range[8..12].try_into().unwrap_or_default());
            let flags = u32::from_le_bytes(range[12..].try_into().unwrap_or_default());
            if flags > 1 {
                return Err(Failure::Unsupported);
            }
            let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Disk)?;
            let length = u64::from(count) * SECTOR_BYTES;
            if count > DISCARD_SECTORS_MAX
                || offset.checked_add(length).is_none_or(|end| end > self.shape.size_bytes)
            {
                return Err(Failure::Disk);
            }
            // Nothing is copied, but each block is examined.
            queues.spend(usize::try_from(length).unwrap_or(usize::MAX) / 16);
            disk.zero(offset, length).map_err(failed)?;
        }
        Ok(())
    }

    fn check(&self, offset: u64, length: usize) -> Result<(), Failure> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.shape.size_bytes);
        let lawful = (length as u64).is_multiple_of(SECTOR_BYTES) && length <= REQUEST_BYTES_MAX;
        if end.is_some() && lawful { Ok(()) } else { Err(Failure::Disk) }
    }

    fn needs_writable(&self) -> Result<(), Failure> {
        if self.shape.read_only { Err(Failure::Disk) } else { Ok(()) }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn format(&self) -> &str {
        &self.format
    }

    fn features(&self) -> u64 {
        let always =
            [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY];
        let more: &[u32] = if self.shape.read_only {
            &[VIRTIO_BLK_F_RO]
        } else {
            &[VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
        };
        always.iter().chain(more).fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..));
        data.iter_mut().zip(rest.unwrap_or_default()).for_each(|(into, byte)| *into = *byte);
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        while let Some(chain) = queues.pop(queue)? {
            let Some(room) = chain.writer().left().checked_sub(1) else {
                return Err(ProtocolViolation("a block request without a place for its status"));
            };
            let (status, written) = match self.serve(&chain, queues) {
                Ok(written) => (VIRTIO_BLK_S_OK, written),
                Err(Failure::Disk) => (VIRTIO_BLK_S_IOERR, 0),
                Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
                Err(Failure::Violation(violation)) => return Err(violation),
            };
            #[expect(clippy::cast_possible_truncation, reason = "a status is a byte")]
            chain.writer().rest_after(room).write(queues.memory(), &[status as u8])?;
            // The number counts from the first byte on: it covers the status only when all before it was written.
            queues.push(queue, &chain, if written == room { room + 1 } else { written })?;
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        encode(&self.format, &self.shape)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let shape: Shape = decode(&self.format, bytes)?;
        let words = |shape: Shape| {
            format!("{} bytes, {}", shape.size_bytes, if shape.read_only { "read-only" } else { "writable" })
        };
        if shape == self.shape {
            return Ok(());
        }
        Err(MachineError::Mismatch {
            what: format!("disk {}", self.id),
            expected: words(shape),
            found: words(self.shape),
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "an error ends here")]
fn failed(error: std::io::Error) -> Failure {
    tracing::warn!(%error, "a request of a guest to its disk failed");
    Failure::Disk
}

/// The configuration, as far as its fields are used.
fn config_space(size_bytes: u64) -> Vec<u8> {
    let mut space = vec![0; 60];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &(size_bytes / SECTOR_BYTES).to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    // Topology: a physical block is one of the store's, aligned from the start on, and so is the least efficient size.
    put(24, &[SECTORS_A_BLOCK, 0]);
    put(26, &(1_u16 << SECTORS_A_BLOCK).to_le_bytes());
    // Discard: most sectors, most ranges, alignment; then writing zeros: most sectors, most ranges, may unmap.
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &(1_u32 << SECTORS_A_BLOCK).to_le_bytes());
    put(48, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    space
}
