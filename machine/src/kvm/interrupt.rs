use std::sync::Arc;

use kvm_ioctls::VmFd;

/// A line into the guest's interrupt controllers.
///
/// It takes effect before the call returns: an interrupt in transit in another thread would not be in any checkpoint.
pub(super) trait InterruptLine: Send {
    /// Raises or lowers the line.
    fn set(&self, raised: bool);

    /// One pulse.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A line of KVM's interrupt controllers.
#[derive(Clone)]
pub(super) struct VmLine {
    fd: Arc<VmFd>,
    number: u32,
}

impl VmLine {
    pub(super) fn new(fd: Arc<VmFd>, number: u32) -> Self {
        Self { fd, number }
    }
}

impl InterruptLine for VmLine {
    fn set(&self, raised: bool) {
        // Fails only without interrupt controllers or for an unknown number: a guest cannot cause it.
        if let Err(error) = self.fd.set_irq_line(self.number, raised) {
            tracing::error!(line = self.number, %error, "an interrupt is lost");
        }
    }
}
