use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retrovisor_guest::MachineError;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::{FRAME_BYTES_MAX, tap};

/// What a network device of a machine is connected to.
#[derive(Clone, Debug)]
pub enum NetBackend {
    /// The [`super::hub::Hub`] that listens there. When it comes back after it was gone, so does the link.
    Hub(PathBuf),
    /// A descriptor that another process opened: a connection to a hub, which is a `SOCK_SEQPACKET` or datagram socket
    /// on which each packet is a frame; or an attached tap.
    Open(Arc<OwnedFd>),
    /// A tap of the host, by name; it is created if the caller has permission.
    Tap(String),
}

/// An open descriptor for frames.
pub(crate) struct Link {
    fd: OwnedFd,
    /// A socket, not a tap.
    socket: bool,
}

/// The result of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A frame of this many bytes.
    Frame(usize),
    /// No frame now.
    Nothing,
    /// No frame any more: the other side is gone.
    Closed,
}

impl Link {
    /// Connects.
    pub(crate) fn open(backend: &NetBackend) -> Result<Self, MachineError> {
        match backend {
            NetBackend::Hub(path) => {
                let fd = connect(path).map_err(|error| MachineError::Config {
                    what: format!("no hub answers at {}: {error}", path.display()),
                    help: "Start one there, or use another network".into(),
                })?;
                Ok(Self { fd, socket: true })
            }
            NetBackend::Open(fd) => {
                let failed =
                    |source: io::Error| MachineError::Io { doing: "taking over a network".into(), source };
                Self::take(fd.try_clone().map_err(failed)?).map_err(|errno| failed(errno.into()))
            }
            NetBackend::Tap(name) => Ok(Self { fd: tap::open(name)?, socket: false }),
        }
    }

    fn take(fd: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let mode = rustix::fs::fstat(&fd)?.st_mode;
        Ok(Self { fd, socket: FileType::from_raw_mode(mode) == FileType::Socket })
    }

    /// Its descriptor, for passing on.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends a frame, or drops it where there is no room.
    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = if self.socket {
            rustix::net::send(&self.fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        } else {
            rustix::io::write(&self.fd, frame)
        };
        match sent {
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::PIPE | Errno::CONNRESET) => {}
            Err(errno) => tracing::debug!(%errno, "a frame is lost"),
        }
    }

    /// Receives a frame. One that is too long is cut, since no machine on these networks may send it.
    pub(crate) fn receive(&self, into: &mut [u8; FRAME_BYTES_MAX]) -> Received {
        loop {
            let received = if self.socket {
                rustix::net::recv(&self.fd, &mut into[..], RecvFlags::DONTWAIT).map(|(length, _)| length)
            } else {
                rustix::io::read(&self.fd, &mut into[..])
            };
            return match received {
                Ok(0) => Received::Closed,
                Ok(length) => Received::Frame(length),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Received::Nothing,
                Err(_) => Received::Closed,
            };
        }
    }

    /// Drops the frames that wait to be received, up to a bound; returns the last result.
    pub(crate) fn drain(&self) -> Received {
        let mut frame = [0; FRAME_BYTES_MAX];
        let last =
            (0..4096).map(|_| self.receive(&mut frame)).find(|last| !matches!(last, Received::Frame(_)));
        last.unwrap_or(Received::Nothing)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(rustix::net::AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}
