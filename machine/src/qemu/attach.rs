//! Attaches to a running QEMU, whoever started it.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use retrovisor_guest::{Accelerator, MachineError, ProcessIdentity};
use serde_json::{Value, json};

use super::device_state::{Clients, DeviceState};
use super::devices::Devices;
use super::dirty_finder::Finder;
use super::disk::AttachedDisk;
use super::layout;
use super::mapping::Mapping;
use super::memory::GuestRam;
use super::message::Version;
use super::monitor::{Monitor, text};
use super::qmp::{self, Qmp};
use super::runtime::RuntimeDir;
use super::shape::Shape;
use crate::error::QmpError;
use crate::process::Process;
use crate::ram::Ram;

/// The first version with everything that is needed here.
const VERSION_MIN: Version = Version { major: 7, minor: 2, micro: 0 };
/// The options with which QEMU must be started for an attach.
const OPTIONS: &str = "Start QEMU with `-object memory-backend-file,id=ram,size=512M,mem-path=/dev/shm/NAME,share=on \
                       -machine q35,memory-backend=ram -m 512M` (the three sizes being the guest's memory)";

/// What to do when no process listens.
const NOT_RUNNING: &str =
    "Is QEMU running? Start it with `-qmp unix:PATH,server=on,wait=off` and name that path";

/// A QEMU to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachConfig {
    /// The machine's name.
    pub name: String,
    /// The socket of its monitor (QMP), at which no other client may be connected.
    pub qmp: PathBuf,
    /// The runtime directory of the launch that started this QEMU; any directory for one that another program started.
    pub runtime_dir: PathBuf,
}

/// Connects to a monitor and finds the process behind it.
pub(super) fn connect(config: &AttachConfig) -> Result<Monitor, MachineError> {
    let qmp = Qmp::connect(&config.qmp).map_err(|error| refusal(config, &error))?;
    let process = process_behind(config, qmp.stream())?;
    Monitor::new(&config.name, qmp, process)
}

fn refusal(config: &AttachConfig, error: &QmpError) -> MachineError {
    let refuse = |what: String, help: &str| MachineError::Config { what, help: help.into() };
    match error {
        QmpError::Connect { .. } => refuse(error.to_string(), NOT_RUNNING),
        QmpError::Busy { .. } => refuse(
            error.to_string(),
            "A monitor socket serves one program at a time: end the other, or give QEMU a second -qmp. \
             `retrovisor list` shows the machines that are managed already",
        ),
        other => {
            refuse(format!("{}: {other}", config.qmp.display()), "Name the socket of a QEMU's -qmp option")
        }
    }
}

/// The process behind a monitor socket, which may be busy with another client.
pub(super) fn find(config: &AttachConfig) -> Result<ProcessIdentity, MachineError> {
    let stream = qmp::connect(&config.qmp).map_err(|error| refusal(config, &error))?;
    Ok(process_behind(config, &stream)?.identity().clone())
}

fn process_behind(config: &AttachConfig, stream: &impl AsFd) -> Result<Process, MachineError> {
    let pid = getsockopt(stream, PeerCredentials).map_or(0, |peer| peer.pid());
    let log = Some(RuntimeDir::new(&config.runtime_dir).log()).filter(|path| path.exists());
    Process::find("QEMU", pid, log).map_err(|error| MachineError::Config {
        what: format!("the process behind {} cannot be seen: {error}", config.qmp.display()),
        help: "Attach on the host and in the container where QEMU runs, as its user or root".into(),
    })
}

/// The properties of a running QEMU, and what was set up in it.
pub(super) struct Parts {
    pub(super) shape: Shape,
    pub(super) ram: GuestRam,
    pub(super) device_state: DeviceState,
    pub(super) disks: Vec<AttachedDisk>,
    pub(super) devices: Devices,
}

impl Parts {
    pub(super) fn of(monitor: &mut Monitor, clients: Clients) -> Result<Self, MachineError> {
        let version = monitor.version();
        if version < VERSION_MIN {
            return Err(MachineError::Unsupported {
                what: format!("QEMU {version}"),
                help: format!("Use QEMU {}.{} or later", VERSION_MIN.major, VERSION_MIN.minor),
            });
        }
        let mut devices = Devices::of(monitor)?;
        let (backend, length_bytes) = memory(monitor, &devices)?;
        let tree = monitor.human("info mtree -f")?;
        // Old machine types name the region after the backend's whole path.
        let id = backend.rsplit('/').next().unwrap_or_default();
        let layout = layout::parse(&tree, id, length_bytes)
            .or_else(|_| layout::parse(&tree, &backend, length_bytes))
            .map_err(|message| unreadable("finding the guest's memory in its address space", message))?;

        let pid = monitor.process().pid();
        let doing = "opening the guest's memory file";
        let mappings = Mapping::find(pid, length_bytes).map_err(|error| denied(doing, &error))?;
        let mapping =
            mappings.first().ok_or_else(|| unreadable(doing, "QEMU has mapped no such file".into()))?;
        let file = mapping.open(pid).map_err(|error| denied(doing, &error))?;
        let ram = Ram::shared(layout.clone(), file, mapping.offset)?;

        let kvm = monitor.execute("query-kvm", &json!({}))?;
        let board = monitor.execute("qom-get", &json!({ "path": "/machine", "property": "type" }))?;
        let accelerator = match kvm.get("enabled") {
            Some(Value::Bool(true)) => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        };
        devices.check_at_attach(monitor, accelerator)?;
        let shape = Shape {
            version: format!("{}.{}", version.major, version.minor),
            board: board.as_str().unwrap_or_default().to_owned(),
            accelerator,
            vcpus: u32::try_from(devices.vcpus()).unwrap_or(u32::MAX),
            layout,
            devices: Some(devices.peripherals.clone()),
        };
        let disks = AttachedDisk::list(monitor)?;
        can_be_saved(monitor)?;
        // Last, so that nothing remains in a QEMU that is refused.
        let device_state = DeviceState::set_up(monitor, clients)?;
        let finder = Finder::new(pid, mapping, &ram);
        Ok(Self { shape, ram: GuestRam::new(ram, finder), device_state, disks, devices })
    }
}

/// The object that is the guest's memory (`/objects/ram`), and its length. Refuses memory that cannot be shared.
fn memory(monitor: &mut Monitor, devices: &Devices) -> Result<(String, u64), MachineError> {
    let refuse = |what: &str| MachineError::Unsupported { what: what.into(), help: OPTIONS.into() };
    if let Some(plugged) = devices.plugged_memory() {
        return Err(refuse(&format!("memory that was plugged in ({plugged})")));
    }
    let property = json!({ "path": "/machine", "property": "memory-backend" });
    let backend = monitor.execute("qom-get", &property)?;
    let backends = monitor.execute("query-memdev", &json!({}))?;
    let backend = backend.as_str().unwrap_or_default();
    let own = backends.as_array().into_iter().flatten();
    let own = own
        .into_iter()
        .find(|entry| text(entry, "id").is_some_and(|id| backend.rsplit('/').next() == Some(id)));
    let Some(own) = own else {
        return Err(refuse("a guest whose memory is private to QEMU, or in several objects,"));
    };
    let is_shared = |entry: &&Value| entry.get("share") == Some(&Value::Bool(true));
    if !is_shared(&own) {
        return Err(refuse("a guest whose memory file is not shared (share=on)"));
    }
    // It would be in no checkpoint: neither in the memory nor in the devices' state.
    let others = backends.as_array().into_iter().flatten().filter(is_shared);
    let others: Vec<_> =
        others.filter(|entry| *entry != own).map(|entry| text(entry, "id").unwrap_or("?")).collect();
    if !others.is_empty() {
        return Err(refuse(&format!("shared memory beside the guest's own ({})", others.join(", "))));
    }
    let length_bytes = own.get("size").and_then(Value::as_u64);
    let length_bytes =
        length_bytes.ok_or_else(|| refuse("a guest whose memory's size QEMU does not report"))?;
    Ok((backend.to_owned(), length_bytes))
}

/// Refuses a machine with a device whose state QEMU cannot save.
fn can_be_saved(monitor: &mut Monitor) -> Result<(), MachineError> {
    let migration = monitor.execute("query-migrate", &json!({}))?;
    let reasons = migration.get("blocked-reasons").and_then(Value::as_array);
    let reasons: Vec<_> = reasons.into_iter().flatten().filter_map(Value::as_str).collect();
    if reasons.is_empty() {
        return Ok(());
    }
    Err(MachineError::Unsupported {
        what: format!("saving the state of this guest's devices ({})", reasons.join("; ")),
        help: "Start QEMU without that device".into(),
    })
}

fn unreadable(doing: &str, message: String) -> MachineError {
    MachineError::Driver { doing: doing.into(), message }
}

fn denied(doing: &str, error: &std::io::Error) -> MachineError {
    MachineError::Config {
        what: format!("{doing} failed: {error}"),
        help: "Run this as the user QEMU runs as, or as root".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::time::{Duration, Instant};

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

    use super::*;

    #[test]
    fn a_monitor_that_serves_another_client_is_refused_at_once_however_often() {
        let dir = tempfile::tempdir().unwrap();
        let qmp = dir.path().join("qmp");
        // Accepts nobody, as QEMU while it has a client.
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&qmp).unwrap()).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let config = AttachConfig { name: "web".into(), qmp, runtime_dir: dir.path().to_owned() };
        let begun = Instant::now();
        let found: Vec<_> = (0..5).map(|_| find(&config)).collect();
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert!(found[0].is_ok(), "{found:?}");
        let Err(MachineError::Config { what, help }) = &found[4] else { panic!("{found:?}") };
        assert!(what.contains("another") && help.contains("retrovisor list"), "{what}: {help}");
    }
}
