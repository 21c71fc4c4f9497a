use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use retrovisor_guest::MachineError;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::socket_path;
use retrovisor_guest::MacAddress;

/// Bound on the machines of one hub.
const PEERS_MAX: usize = 256;
/// Bound on the addresses that are learnt of one machine: one is usual, bridges and containers in it have more.
const ADDRESSES_OF_PEER_MAX: usize = 64;
/// Frames of one machine that are forwarded before it is the others' turn.
const TURN_FRAMES: usize = 32;
const BACKLOG: i32 = 64;

/// A learning switch between machines, also of other processes: each connects to its socket, and every packet is a
/// frame.
///
/// There is no queue for a machine that does not read besides its socket's buffer; further frames are dropped, as on a
/// real network.
pub struct Hub {
    path: PathBuf,
    stop: Arc<OwnedFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counters {
    forwarded: AtomicU64,
    lost: AtomicU64,
}

/// What a hub did with frames; one that goes to several machines counts for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubTraffic {
    /// Delivered to a machine's socket.
    pub forwarded_frames: u64,
    /// Dropped: too long, too short, or no room.
    pub lost_frames: u64,
}

impl Hub {
    /// Makes a hub whose socket is `path`, for this user only. A socket there that no process serves is replaced.
    pub fn serve(path: &Path) -> Result<Self, MachineError> {
        let failed = |errno: Errno| MachineError::Io {
            doing: format!("making a hub at {}", path.display()),
            source: errno.into(),
        };
        socket_path::check(path)?;
        let listener = listen(path).map_err(failed)?;
        let stop =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let (stop, counters) = (Arc::new(stop), Arc::new(Counters::default()));
        let thread = std::thread::Builder::new()
            .name("hub".into())
            .spawn({
                let (stop, counters) = (Arc::clone(&stop), Arc::clone(&counters));
                move || {
                    Switch { listener, stop, counters, peers: Vec::new(), next: 0, ports: HashMap::new() }
                        .run();
                }
            })
            .map_err(|source| MachineError::Io { doing: "starting the hub's thread".into(), source })?;
        Ok(Self { path: path.to_owned(), stop, counters, thread: Some(thread) })
    }

    /// Where machines connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its counters.
    #[must_use]
    pub fn traffic(&self) -> HubTraffic {
        HubTraffic {
            forwarded_frames: self.counters.forwarded.load(Ordering::Relaxed),
            lost_frames: self.counters.lost.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then the thread wakes up as well.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket that only this user can connect to.
fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        || rustix::net::socket_with(rustix::net::AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let address = SocketAddrUnix::new(path)?;
    let listener = socket()?;
    // The mode that the file is made with.
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    match rustix::net::bind(&listener, &address) {
        Err(Errno::ADDRINUSE) if rustix::net::connect(socket()?, &address) == Err(Errno::CONNREFUSED) => {
            rustix::fs::unlink(path)?;
            rustix::net::bind(&listener, &address)?;
        }
        bound => bound?,
    }
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The number of a connection, never used again.
type Port = u64;

struct Peer {
    port: Port,
    fd: OwnedFd,
    /// The addresses it sent from, the newest last.
    addresses: Vec<MacAddress>,
}

struct Switch {
    listener: OwnedFd,
    stop: Arc<OwnedFd>,
    counters: Arc<Counters>,
    peers: Vec<Peer>,
    next: Port,
    /// The connection behind which an address is.
    ports: HashMap<MacAddress, Port>,
}

impl Switch {
    fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(Some(ready)) => ready,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "a hub ends");
                    return;
                }
            };
            // First, so that a frame reaches the machines that connected before it was sent.
            self.accept();
            let mut gone = Vec::new();
            for (at, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                if !self.take_from(at) {
                    gone.push(at);
                }
            }
            for at in gone.into_iter().rev() {
                let peer = self.peers.swap_remove(at);
                self.ports.retain(|_, port| *port != peer.port);
            }
        }
    }

    /// Sleeps until there is work; returns the peers with data. `None`: the end.
    fn wait(&self) -> io::Result<Option<Vec<bool>>> {
        let fds = [self.stop.as_fd(), self.listener.as_fd()].into_iter();
        let fds = fds.chain(self.peers.iter().map(|peer| peer.fd.as_fd()));
        let mut polled: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        loop {
            match rustix::event::poll(&mut polled, None) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => break,
            }
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        Ok(if ready.next() == Some(true) { None } else { Some(ready.skip(1).collect()) })
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(fd) = rustix::net::accept_with(&self.listener, flags) {
            if self.peers.len() < PEERS_MAX {
                self.peers.push(Peer { port: self.next, fd, addresses: Vec::new() });
                self.next += 1;
            } else {
                tracing::warn!("a hub has {PEERS_MAX} machines and takes no more");
            }
        }
    }

    /// Forwards the frames of a peer, up to its share; returns whether it is still connected.
    fn take_from(&mut self, at: usize) -> bool {
        // One byte more than the longest frame: shows frames that are too long.
        let mut frame = [0; FRAME_BYTES_MAX + 1];
        for _ in 0..TURN_FRAMES {
            match rustix::net::recv(&self.peers[at].fd, &mut frame[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((length, _)) if (HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length) => {
                    self.forward(at, &frame[..length]);
                }
                Ok(_) => self.mark_lost(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn forward(&mut self, from: usize, frame: &[u8]) {
        let address = |at: usize| frame.get(at..at + 6).and_then(|bytes| bytes.try_into().ok());
        // A group address is never learnt.
        let Some(source) = address(6).and_then(MacAddress::new) else { return self.mark_lost() };
        self.learn(from, source);
        let target = address(0).and_then(MacAddress::new).and_then(|target| self.ports.get(&target).copied());
        let others = self.peers.iter().enumerate().filter(|(at, _)| *at != from).map(|(_, peer)| peer);
        for peer in others.filter(|peer| target.is_none_or(|target| target == peer.port)) {
            match rustix::net::send(&peer.fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => self.counters.forwarded.fetch_add(1, Ordering::Relaxed),
                // Full, or disconnected, which the next poll shows.
                Err(_) => self.counters.lost.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    /// The most recent port of an address is the right one: a machine may have moved.
    fn learn(&mut self, from: usize, address: MacAddress) {
        let peer = &mut self.peers[from];
        if self.ports.insert(address, peer.port) == Some(peer.port) {
            return;
        }
        peer.addresses.retain(|known| *known != address);
        peer.addresses.push(address);
        if peer.addresses.len() > ADDRESSES_OF_PEER_MAX {
            let oldest = peer.addresses.remove(0);
            if self.ports.get(&oldest) == Some(&peer.port) {
                self.ports.remove(&oldest);
            }
        }
    }

    fn mark_lost(&self) {
        self.counters.lost.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::link::{Link, NetBackend, Received};
    use super::*;

    fn plug(hub: &Hub) -> Link {
        Link::open(&NetBackend::Hub(hub.path().to_owned())).unwrap()
    }

    fn frame(to: u8, from: u8, text: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
        frame.extend(text);
        frame
    }

    fn everyone(from: u8, text: &[u8]) -> Vec<u8> {
        let mut frame = frame(0, from, text);
        frame[..6].fill(0xff);
        frame
    }

    fn receive(link: &Link) -> Vec<u8> {
        let mut bytes = [0; FRAME_BYTES_MAX];
        let began = Instant::now();
        loop {
            match link.receive(&mut bytes) {
                Received::Frame(length) => return bytes[..length].to_vec(),
                Received::Nothing => std::thread::sleep(Duration::from_millis(1)),
                Received::Closed => panic!("the hub is gone"),
            }
            assert!(began.elapsed() < Duration::from_secs(10), "no frame comes");
        }
    }

    fn assert_silent(link: &Link) {
        assert_eq!(link.receive(&mut [0; FRAME_BYTES_MAX]), Received::Nothing);
    }

    #[test]
    fn frames_go_where_their_address_was_seen_and_else_to_all() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::serve(&dir.path().join("hub")).unwrap();
        let links = [plug(&hub), plug(&hub), plug(&hub)];
        links[0].send(&everyone(1, b"hello"));
        assert_eq!(receive(&links[1]), everyone(1, b"hello"));
        assert_eq!(receive(&links[2]), everyone(1, b"hello"));
        links[1].send(&frame(1, 2, b"you"));
        assert_eq!(receive(&links[0]), frame(1, 2, b"you"));
        // The other machine gets frames for unknown addresses, and before that none that was not for it.
        links[0].send(&frame(9, 1, b"who?"));
        assert_eq!(receive(&links[2]), frame(9, 1, b"who?"));
        assert_eq!(receive(&links[1]), frame(9, 1, b"who?"));
        assert_silent(&links[0]);
        // The address moves.
        links[2].send(&everyone(2, b"moved"));
        assert_eq!(receive(&links[0]), everyone(2, b"moved"));
        assert_eq!(receive(&links[1]), everyone(2, b"moved"));
        links[0].send(&frame(2, 1, b"there"));
        assert_eq!(receive(&links[2]), frame(2, 1, b"there"));
        assert_silent(&links[1]);
    }

    #[test]
    fn what_is_no_frame_and_what_has_no_room_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::serve(&dir.path().join("hub")).unwrap();
        let (talker, sleeper) = (plug(&hub), plug(&hub));
        talker.send(&[2; HEADER_BYTES - 1]);
        talker.send(&[2; FRAME_BYTES_MAX + 1]);
        talker.send(&frame(9, 1, b"").iter().map(|byte| byte | 1).collect::<Vec<_>>());
        talker.send(&everyone(1, b"one"));
        assert_eq!(receive(&sleeper), everyone(1, b"one"));
        assert_eq!(hub.traffic(), HubTraffic { forwarded_frames: 1, lost_frames: 3 });
        let full = everyone(1, &[7; 1500]);
        while hub.traffic().lost_frames < 100 {
            talker.send(&full);
        }
        assert!(hub.traffic().forwarded_frames < 10_000);
        drop(sleeper);
        let late = plug(&hub);
        // The connection to the hub may be full, too.
        let mut bytes = [0; FRAME_BYTES_MAX];
        while late.receive(&mut bytes) == Received::Nothing {
            talker.send(&everyone(1, b"late"));
        }
    }

    #[test]
    fn a_hub_takes_over_from_one_that_died_and_from_none_that_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub");
        // A listener that ended without removing its socket.
        drop(listen(&path).unwrap());
        let hub = Hub::serve(&path).unwrap();
        assert!(Hub::serve(&path).is_err());
        let link = plug(&hub);
        drop(hub);
        assert_eq!(link.receive(&mut [0; FRAME_BYTES_MAX]), Received::Closed);
        assert!(!path.exists());
        assert!(Link::open(&NetBackend::Hub(path)).is_err());
    }

    #[test]
    fn one_machine_cannot_fill_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::serve(&dir.path().join("hub")).unwrap();
        let (flooder, other) = (plug(&hub), plug(&hub));
        other.send(&everyone(200, b"I am here"));
        receive(&flooder);
        for from in 0..150 {
            flooder.send(&frame(200, from, b"x"));
            assert_eq!(receive(&other), frame(200, from, b"x"));
        }
        flooder.send(&frame(200, 1, b"still"));
        assert_eq!(receive(&other), frame(200, 1, b"still"));
    }
}
