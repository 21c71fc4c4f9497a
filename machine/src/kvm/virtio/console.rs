use std::io::Write as _;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::device::VirtioDevice;
use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;
use crate::kvm::console::output::ConsoleOutput;
use crate::kvm::console::pending::Pending;

const RECEIVE: usize = 0;
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 4096;

/// A console with one port. It has no state besides that of its queues.
pub(crate) struct Console {
    output: ConsoleOutput,
    input: Pending,
}

impl Console {
    pub(crate) fn new(output: ConsoleOutput, input: Pending) -> Self {
        Self { output, input }
    }

    fn transmit(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        let mut bytes = [0; PIECE_BYTES];
        while let Some(chain) = queues.pop(queue)? {
            let mut reader = chain.reader();
            // A request may name the same memory many times: bytes beyond what can be kept are not read.
            let excess = reader.left().saturating_sub(ConsoleOutput::KEPT_BYTES_MAX);
            reader.skip(excess);
            loop {
                let length = reader.read(queues.memory(), &mut bytes)?;
                if length == 0 {
                    break;
                }
                // It accepts any size.
                let _ = self.output.write_all(&bytes[..length]);
            }
            queues.push(queue, &chain, 0)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn format(&self) -> &'static str {
        "virtio-console/1"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        match queue {
            RECEIVE => self.take_input(queues),
            _ => self.transmit(queue, queues),
        }
    }

    fn take_input(&mut self, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        while self.input.len() > 0 {
            let Some(chain) = queues.pop(RECEIVE)? else { return Ok(()) };
            let mut writer = chain.writer();
            let mut written = Ok(0);
            self.input.offer(writer.left().min(PIECE_BYTES), |bytes| {
                written = writer.write(queues.memory(), bytes);
                written.unwrap_or(0)
            });
            queues.push(RECEIVE, &chain, written?)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}
