use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use retrovisor_guest::{Machine, MachineError};
use retrovisor_machine::kvm::RemoteMachine;
use retrovisor_machine::qemu::QemuMachine;

/// A virtual machine of either driver, and what the manager needs of both beyond [`Machine`].
pub enum Vm {
    /// Stock QEMU.
    Qemu(Box<QemuMachine>),
    /// A microVM.
    Kvm(Box<RemoteMachine>),
}

impl Vm {
    /// The socket of its first serial port.
    pub fn console(&self) -> Option<PathBuf> {
        match self {
            Self::Qemu(machine) => machine.console(),
            Self::Kvm(machine) => Some(machine.console()),
        }
    }

    /// The file that keeps what the guest writes there.
    pub fn console_log(&self) -> Option<PathBuf> {
        match self {
            Self::Qemu(machine) => machine.console_log(),
            Self::Kvm(machine) => Some(machine.console_log()),
        }
    }

    /// The socket of a port with a shell, for faults: QEMU's second serial port, a microVM's control channel.
    pub(crate) fn control(&self) -> Option<PathBuf> {
        match self {
            Self::Qemu(machine) => machine.control(),
            Self::Kvm(machine) => machine.channel(),
        }
    }

    /// Which terminal that is in the guest.
    pub(crate) fn control_port(&self) -> &'static str {
        match self {
            Self::Qemu(_) => "ttyS1",
            Self::Kvm(_) => "hvc0 (module virtio_console)",
        }
    }

    /// Whether the links of its network interfaces are up, in order; none when that is not known.
    pub(crate) fn links(&self) -> Vec<bool> {
        match self {
            Self::Qemu(_) => Vec::new(),
            Self::Kvm(machine) => machine.nets().unwrap_or_default().into_iter().map(|net| net.up).collect(),
        }
    }

    /// How dirty pages are found.
    pub(crate) fn finder(&self) -> String {
        match self {
            Self::Qemu(machine) => machine.finder().0.to_owned(),
            Self::Kvm(_) => "kvm log".to_owned(),
        }
    }

    /// How confined its process is, in words; empty when that is not ours to say.
    pub(crate) fn confinement(&self) -> String {
        let Self::Kvm(machine) = self else { return String::new() };
        let confinement = machine.confinement();
        let missing = confinement.missing.iter().map(|(what, why)| format!("; not {what} ({why})"));
        confinement.done.join(", ") + &missing.collect::<String>()
    }

    /// Makes a guest whose state came from another machine's one of its own: what it draws at random is not what the other
    /// one draws. Where the driver cannot, nothing happens.
    pub(crate) fn become_another(&mut self) -> Result<(), MachineError> {
        match self {
            Self::Qemu(_) => Ok(()),
            Self::Kvm(machine) => machine.renew_generation_id(),
        }
    }

    /// Lets it outlive us from now on.
    pub(crate) fn detach(&mut self) -> Result<(), MachineError> {
        match self {
            // Its process was started so.
            Self::Qemu(_) => Ok(()),
            Self::Kvm(machine) => machine.detach(),
        }
    }

    /// Ends it, also one that would outlive us.
    pub(crate) fn quit(self) {
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
