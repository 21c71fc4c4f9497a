//! Starts a worker's process, and connects to an existing one.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use retrovisor_guest::{MachineError, MemoryLayout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::runtime::RuntimeDir;
use crate::process::Process;

/// Time limit for a started process to listen.
const LISTEN_PATIENCE: Duration = Duration::from_secs(20);
/// Interval between attempts to connect.
const TRY_AGAIN: Duration = Duration::from_micros(300);

/// The guest's memory: a memfd with a sealed length, so that no mapping of it can fail later.
pub(super) fn memory_file(layout: &MemoryLayout) -> Result<File, MachineError> {
    let failed = |source| MachineError::Io { doing: "making the guest's memory".into(), source };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"retrovisor-guest", flags).map_err(|errno| failed(errno.into()))?);
    file.set_len(layout.bytes()).map_err(failed)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed(errno.into()))?;
    Ok(file)
}

/// A file from a worker, if its length is sealed, so that it cannot become shorter under a mapping.
pub(super) fn sealed(received: OwnedFd) -> Option<File> {
    let seals = fcntl(&received, FcntlArg::F_GET_SEALS).ok()?;
    SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK).then(|| File::from(received))
}

pub(super) fn log_file(path: &Path) -> Result<File, MachineError> {
    let opened = File::options().create(true).read(true).append(true).mode(0o600).open(path);
    opened.map_err(|source| MachineError::Io { doing: format!("opening {}", path.display()), source })
}

/// Starts the process that becomes the worker, and waits until it has.
pub(super) fn start(
    program: &Path,
    arguments: &[OsString],
    runtime: &RuntimeDir,
) -> Result<(), MachineError> {
    let failed = |doing: &str| {
        let doing = format!("{doing} for the worker");
        move |source: io::Error| MachineError::Io { doing, source }
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").env_clear();
    for kept in ["RETROVISOR_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.stdin(Stdio::from(bound(&runtime.control()).map_err(failed("making a socket"))?));
    command.stdout(Stdio::from(bound(&runtime.console()).map_err(failed("making a socket"))?));
    command.stderr(log_file(&runtime.log())?);
    let status = command.status().map_err(failed("starting a process"))?;
    if status.success() {
        return Ok(());
    }
    Err(MachineError::Driver {
        doing: "starting a worker".into(),
        message: format!("{status}; see {}", runtime.log().display()),
    })
}

/// A socket that is bound and does not listen yet.
pub(super) fn bound(path: &Path) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Connects to the worker and opens its process: the one that listens, which must belong to this user.
pub(super) fn connect(runtime: &RuntimeDir) -> io::Result<(UnixStream, Process)> {
    let stream = UnixStream::connect(runtime.control())?;
    let peer = getsockopt(&stream, PeerCredentials)?;
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {} listens there", peer.uid()),
        ));
    }
    let process = Process::find("the worker", peer.pid(), Some(runtime.log()))?;
    Ok((stream, process))
}

pub(super) fn connect_soon(runtime: &RuntimeDir) -> Result<(UnixStream, Process), MachineError> {
    let began = Instant::now();
    loop {
        match connect(runtime) {
            Ok(connected) => return Ok(connected),
            Err(error) if began.elapsed() > LISTEN_PATIENCE => {
                return Err(MachineError::Driver {
                    doing: "starting a worker".into(),
                    message: format!("{error}; see {}", runtime.log().display()),
                });
            }
            Err(_) => std::thread::sleep(TRY_AGAIN),
        }
    }
}
