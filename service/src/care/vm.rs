use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use retrovisor_guest::Machine;
use retrovisor_machine::kvm::RemoteMachine;
use retrovisor_machine::qemu::QemuMachine;

/// A virtual machine of either driver, and what the service wants of both that no [`Machine`] must have.
pub(crate) enum Vm {
    Qemu(Box<QemuMachine>),
    Kvm(Box<RemoteMachine>),
}

impl Vm {
    /// The socket of its first serial port.
    pub(crate) fn console(&self) -> Option<PathBuf> {
        match self {
            Self::Qemu(machine) => machine.console(),
            Self::Kvm(machine) => Some(machine.console()),
        }
    }

    /// The file that keeps what the guest writes there.
    pub(crate) fn console_log(&self) -> Option<PathBuf> {
        match self {
            Self::Qemu(machine) => machine.console_log(),
            Self::Kvm(machine) => Some(machine.console_log()),
        }
    }

    /// The socket of a serial port with a shell, for faults.
    pub(super) fn control(&self) -> Option<PathBuf> {
        match self {
            Self::Qemu(machine) => machine.control(),
            Self::Kvm(_) => None,
        }
    }

    /// How dirty pages are found.
    pub(super) fn finder(&self) -> String {
        match self {
            Self::Qemu(machine) => machine.finder().0.to_owned(),
            Self::Kvm(_) => "kvm log".to_owned(),
        }
    }

    /// How confined its process is, in words; empty when that is not ours to say.
    pub(super) fn confinement(&self) -> String {
        let Self::Kvm(machine) = self else { return String::new() };
        let confinement = machine.confinement();
        let missing = confinement.missing.iter().map(|(what, why)| format!("; not {what} ({why})"));
        confinement.done.join(", ") + &missing.collect::<String>()
    }

    /// Ends it, also one that would outlive us.
    pub(super) fn quit(self) {
        match self {
            Self::Qemu(machine) => machine.quit(),
            Self::Kvm(machine) => machine.quit(),
        }
    }
}

impl Deref for Vm {
    type Target = dyn Machine;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Qemu(machine) => &**machine,
            Self::Kvm(machine) => &**machine,
        }
    }
}

impl DerefMut for Vm {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Qemu(machine) => &mut **machine,
            Self::Kvm(machine) => &mut **machine,
        }
    }
}
