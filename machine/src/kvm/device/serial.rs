use std::convert::Infallible;

use retrovisor_guest::MachineError;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

use super::{Device, Outcome, Place};
use crate::kvm::console::output::ConsoleOutput;
use crate::kvm::console::pending::Pending;
use crate::kvm::interrupt::InterruptLine;

/// The first serial port of a PC.
const PORT: u16 = 0x3f8;
/// Capacity of its receiver.
const FIFO_BYTES: usize = 64;

/// A 16550A, the console.
pub(crate) struct Serial<L: InterruptLine> {
    uart: Uart<Line<L>, NoEvents, ConsoleOutput>,
    line: L,
    output: ConsoleOutput,
    input: Pending,
}

struct Line<L>(L);

impl<L: InterruptLine> Trigger for Line<L> {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // A serial port's interrupt line is edge-triggered.
        self.0.pulse();
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    registers: [u8; 8],
    baud_divisor: [u8; 2],
    input: Vec<u8>,
}

impl<L: InterruptLine + Clone> Serial<L> {
    /// A port that raises its interrupt through `line`.
    pub(crate) fn new(line: L, output: ConsoleOutput, input: Pending) -> Self {
        let uart = Uart::new(Line(line.clone()), output.clone());
        Self { uart, line, output, input }
    }

    /// Fills the receiver again when the guest has read all of it, which takes one interrupt and not one for each byte.
    fn fill(&mut self) {
        if self.uart.fifo_capacity() == FIFO_BYTES {
            let uart = &mut self.uart;
            self.input.offer(FIFO_BYTES, |bytes| uart.enqueue_raw_bytes(bytes).unwrap_or(0));
        }
    }
}

impl<L: InterruptLine + Clone> Device for Serial<L> {
    fn place(&self) -> Place {
        Place::Ports { first: PORT, count: 8 }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.uart.read(offset);
        }
        self.fill();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = self.uart.write(offset, *byte)
        {
            tracing::debug!(%error, "the serial port");
        }
        self.fill();
        Outcome::Done
    }

    fn take_input(&mut self) {
        self.fill();
    }

    fn format(&self) -> &'static str {
        "serial/1"
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        let state = self.uart.state();
        let saved = Saved {
            registers: [
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
                0,
            ],
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            input: state.in_buffer,
        };
        crate::kvm::state::encode("the serial port", &saved)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let saved: Saved = crate::kvm::state::decode("the serial port", bytes)?;
        let [
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            _,
        ] = saved.registers;
        let state = SerialState {
            baud_divisor_low: saved.baud_divisor[0],
            baud_divisor_high: saved.baud_divisor[1],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: saved.input,
        };
        let failed =
            |message: String| MachineError::Driver { doing: "putting the serial port back".into(), message };
        self.uart = Uart::from_state(&state, Line(self.line.clone()), NoEvents, self.output.clone())
            .map_err(|error| failed(format!("{error:?}")))?;
        Ok(())
    }
}
