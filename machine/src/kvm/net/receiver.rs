use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use retrovisor_guest::MachineError;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::link::{Link, NetBackend};
use super::status::NetStatus;
use crate::kvm::filter::enter_net_thread;
use crate::kvm::input_gate::InputGate;
use crate::kvm::virtio::{Mmio, Net, Progress};
use retrovisor_guest::MacAddress;

/// Interval between attempts to reconnect to a hub that is gone.
const RETRY: Duration = Duration::from_millis(500);
/// How long a link is down before it is up again: guests read the status some time after the notification.
const BOUNCE: Duration = Duration::from_millis(500);

/// The thread that passes arriving frames to a network interface.
pub(crate) struct Receiver {
    net: Arc<Mutex<Mmio<Net>>>,
    plugged: Plugged,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// The new backend of an interface, until its thread takes it.
type Plugged = Arc<Mutex<Option<Link>>>;

/// A connected network interface, before its thread starts.
pub(crate) struct Interface {
    net: Arc<Mutex<Mmio<Net>>>,
    backend: NetBackend,
    link: Arc<Link>,
    /// Written when the driver has provided buffers, a state was restored, or the machine has ended.
    wake: Arc<OwnedFd>,
}

impl Interface {
    /// Connects the interface number `index` of a machine; `add` gives it a place on the bus.
    pub(crate) fn plug(
        backend: &NetBackend,
        index: usize,
        mac: MacAddress,
        add: impl FnOnce(Net) -> Result<Arc<Mutex<Mmio<Net>>>, MachineError>,
    ) -> Result<Self, MachineError> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map(Arc::new).map_err(|errno| MachineError::Io {
            doing: "making an event for a network interface".into(),
            source: errno.into(),
        })?;
        let link = Arc::new(Link::open(backend)?);
        let net = add(Net::new(index, mac, Some(Arc::clone(&link)), Arc::clone(&wake)))?;
        Ok(Self { net, backend: backend.clone(), link, wake })
    }

    /// Starts the thread; it ends once the machine has ended and the result is dropped.
    pub(crate) fn start(self, input_gate: InputGate) -> Result<Receiver, MachineError> {
        let Self { net, backend, link, wake } = self;
        let plugged = Plugged::default();
        let work = Work {
            input_gate,
            net: Arc::clone(&net),
            backend,
            link: Some(link),
            plugged: Arc::clone(&plugged),
            wake: Arc::clone(&wake),
            full: false,
        };
        let thread = std::thread::Builder::new().name("net".into()).spawn(|| work.run());
        let thread = thread.map_err(|source| MachineError::Io {
            doing: "starting the thread of a network interface".into(),
            source,
        })?;
        Ok(Receiver { net, plugged, wake, thread: Some(thread) })
    }
}

impl Receiver {
    /// Connects the interface to something else, once the machine runs.
    pub(crate) fn plug(&self, link: Link) {
        *self.plugged.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
        self.wake();
    }

    pub(crate) fn status(&self) -> NetStatus {
        self.net.lock().unwrap_or_else(PoisonError::into_inner).device().status()
    }

    fn wake(&self) {
        // Fails only when the counter is full: then it is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    input_gate: InputGate,
    net: Arc<Mutex<Mmio<Net>>>,
    backend: NetBackend,
    link: Option<Arc<Link>>,
    plugged: Plugged,
    wake: Arc<OwnedFd>,
    /// The driver has provided no buffers: frames wait.
    full: bool,
}

/// The result of polling the interface.
enum Next {
    Wait(Progress),
    /// The link went down to be brought up again.
    Bounce,
}

impl Work {
    fn run(mut self) {
        if let Err(error) = enter_net_thread() {
            tracing::error!(
                error,
                "the thread of a network interface cannot be confined, so it receives nothing"
            );
            return;
        }
        loop {
            self.sleep();
            if let Some(link) = self.plugged.lock().unwrap_or_else(PoisonError::into_inner).take() {
                self.link = Some(Arc::new(link));
                self.full = false;
            }
            if self.link.is_none() {
                self.find_hub();
            }
            let link = self.link.clone();
            match self.work(|net| poll_link(net, link)) {
                None => return,
                Some(Next::Bounce) => {
                    std::thread::sleep(BOUNCE);
                    self.full = false;
                    if self.work(|net| net.device().end_bounce()).is_none() {
                        return;
                    }
                    // Wakes this thread, which notifies the guest that the link is up again.
                    let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
                }
                Some(Next::Wait(progress)) => {
                    self.full = progress == Progress::Full;
                    if progress == Progress::Closed {
                        self.link = None;
                    }
                }
            }
        }
    }

    /// Does work on the interface while the machine runs. `None`: it has ended.
    fn work<R>(&self, work: impl FnOnce(&mut Mmio<Net>) -> R) -> Option<R> {
        self.input_gate.pass(|| work(&mut self.net.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Until something arrives or was asked for.
    fn sleep(&self) {
        let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
        // A link that is full of frames would keep the thread awake.
        let link = self.link.as_ref().filter(|_| !self.full);
        fds.extend(link.map(|link| PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN)));
        let retry = self.link.is_none() && matches!(self.backend, NetBackend::Hub(_));
        let timeout = retry.then(|| Timespec { tv_sec: 0, tv_nsec: RETRY.subsec_nanos().into() });
        // Interrupted or failed: nothing is ready.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn find_hub(&mut self) {
        if matches!(self.backend, NetBackend::Hub(_)) {
            self.link = Link::open(&self.backend).ok().map(Arc::new);
        }
    }
}

/// Notifies the guest of a change of its link, and passes it the frames that arrived.
fn poll_link(net: &mut Mmio<Net>, link: Option<Arc<Link>>) -> Next {
    net.device().plug(link);
    update_link(net);
    if net.device().is_bouncing() {
        return Next::Bounce;
    }
    let progress = match net.work(Net::receive) {
        Some(progress) => progress,
        None => net.device().mark_lost(),
    };
    if progress == Progress::Closed {
        net.device().plug(None);
        update_link(net);
    }
    Next::Wait(progress)
}

fn update_link(net: &mut Mmio<Net>) {
    if let Some(up) = net.device().link_change() {
        net.reconfigure(|net| net.set_up(up));
    }
}
