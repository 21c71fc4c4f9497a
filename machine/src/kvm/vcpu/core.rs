use std::sync::Arc;

use kvm_ioctls::{SyncReg, VcpuFd};
use nix::errno::Errno;
use retrovisor_guest::{MachineError, VcpuRegisters};

use super::shape::Shape;
use super::state::VcpuState;
use super::tsc::Tsc;
use crate::kvm::state::encode;

/// A vCPU, and the part of its state that is known.
pub(crate) struct Core {
    pub(super) fd: VcpuFd,
    shape: Arc<Shape>,
    tsc: Tsc,
    present: Present,
}

/// What is known of a vCPU's state.
enum Present {
    /// Nothing: it runs, or was given another state.
    Unknown,
    /// It was read when the vCPU was stopped, and nothing has changed it since.
    Known(Box<Saved>),
    /// It could not be read.
    Failed(MachineError),
}

struct Saved {
    state: VcpuState,
    bytes: Vec<u8>,
}

impl Core {
    /// A vCPU that has not run yet.
    pub(super) fn new(mut fd: VcpuFd, shape: Arc<Shape>) -> Self {
        for part in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            fd.set_sync_valid_reg(part);
        }
        Self { fd, shape, tsc: Tsc::default(), present: Present::Unknown }
    }

    /// The vCPU is about to run: known state becomes invalid.
    pub(super) fn forget(&mut self) {
        self.present = Present::Unknown;
    }

    pub(super) fn is_known(&self) -> bool {
        matches!(self.present, Present::Known(_))
    }

    /// Reads the state of a vCPU that is stopped, like all others.
    pub(super) fn look(&mut self) {
        let saved = VcpuState::save(&self.fd, &self.shape, &mut self.tsc)
            .and_then(|state| Ok(Box::new(Saved { bytes: encode("a vCPU", &state)?, state })));
        self.present = saved.map_or_else(Present::Failed, Present::Known);
    }

    /// Reads the state of a vCPU that was given one and has not run since. KVM applies part of that state only at an
    /// entry into the guest, which returns at once because the flag for that is set.
    pub(super) fn settle_and_look(&mut self) {
        match self.fd.run() {
            Err(error) if error.errno() != Errno::EINTR as i32 => {
                let errno = Errno::from_raw(error.errno());
                self.present = Present::Failed(MachineError::Driver {
                    doing: "taking the state of a vCPU over".into(),
                    message: errno.desc().into(),
                });
            }
            _ => self.look(),
        }
    }

    /// The state that was read: encoded, and the registers for introspection.
    pub(crate) fn take_saved(&mut self) -> Result<(Vec<u8>, VcpuRegisters), MachineError> {
        match &self.present {
            Present::Known(saved) => Ok((saved.bytes.clone(), saved.state.registers())),
            Present::Unknown => Err(not_read()),
            Present::Failed(_) => match std::mem::replace(&mut self.present, Present::Unknown) {
                Present::Failed(error) => Err(error),
                _ => Err(not_read()),
            },
        }
    }

    /// Sets another state. `host_tsc_gap`: the ticks of the host's time-stamp counter since that state was taken which
    /// the guest's counter must not advance by. `is_quiet`: no timer outside the vCPUs can have sent it an interrupt
    /// meanwhile.
    pub(crate) fn restore(
        &mut self,
        state: &VcpuState,
        host_tsc_gap: u64,
        is_quiet: bool,
    ) -> Result<(), MachineError> {
        let (fd, shape, tsc) = (&mut self.fd, &self.shape, &mut self.tsc);
        // If this fails from here on, the state is unknown.
        if let Present::Known(present) = std::mem::replace(&mut self.present, Present::Unknown)
            && state.restore_over(&present.state, fd, shape, tsc, host_tsc_gap, is_quiet)?
        {
            return Ok(());
        }
        state.restore(fd, shape, tsc, host_tsc_gap)
    }
}

fn not_read() -> MachineError {
    MachineError::Driver { doing: "saving a vCPU".into(), message: "its thread has ended".into() }
}
