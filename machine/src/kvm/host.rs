use kvm_ioctls::Kvm;
use retrovisor_guest::MachineError;

/// The required capabilities of the host's KVM, with their names in errors.
const NEEDED: [(kvm_ioctls::Cap, &str); 8] = [
    (kvm_ioctls::Cap::Irqchip, "interrupt controllers in the kernel"),
    (kvm_ioctls::Cap::Pit2, "a timer in the kernel"),
    (kvm_ioctls::Cap::UserMemory, "guest memory from this process"),
    (kvm_ioctls::Cap::ImmediateExit, "leaving the guest at once"),
    (kvm_ioctls::Cap::AdjustClock, "setting the guest's clock"),
    (kvm_ioctls::Cap::Xcrs, "extended control registers"),
    (kvm_ioctls::Cap::SyncRegs, "registers in shared memory"),
    (kvm_ioctls::Cap::VcpuEvents, "pending events of a vCPU"),
];

/// Opens `/dev/kvm` and checks the required capabilities.
pub(super) fn open() -> Result<Kvm, MachineError> {
    let kvm = Kvm::new().map_err(|error| MachineError::Config {
        what: format!("/dev/kvm does not open: {error}"),
        help: match nix::errno::Errno::from_raw(error.errno()) {
            nix::errno::Errno::ENOENT => "Load the module kvm_intel or kvm_amd, or use `--driver qemu`".into(),
            nix::errno::Errno::EACCES | nix::errno::Errno::EPERM => {
                "Add yourself to the group kvm (sudo usermod -aG kvm $USER, then log in again), or use `--driver qemu`"
                    .into()
            }
            _ => "Use `--driver qemu`".into(),
        },
    })?;
    let missing: Vec<_> =
        NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(kvm);
    }
    Err(MachineError::Unsupported {
        what: format!("this host's KVM lacks {}; a microVM", missing.join(", ")),
        help: "Use `--driver qemu`, or a host with a newer kernel".into(),
    })
}

/// An error of a KVM call, with the action that failed.
pub(super) fn failed(doing: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    let doing = doing.into();
    move |error| MachineError::Driver { doing, message: error.to_string() }
}
