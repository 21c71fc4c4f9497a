use std::os::fd::OwnedFd;
use std::sync::Arc;

use retrovisor_guest::MachineError;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP, virtio_net_hdr_v1,
};

use super::device::VirtioDevice;
use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;
use crate::kvm::net::link::{Link, Received};
use crate::kvm::net::status::NetStatus;
use crate::kvm::net::{FRAME_BYTES_MAX, HEADER_BYTES, MTU_BYTES};
use crate::kvm::state::{decode, encode};
use retrovisor_guest::MacAddress;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// The header of each frame in a queue: without offloads only the number of buffers is used.
const PREFIX_BYTES: usize = size_of::<virtio_net_hdr_v1>();
/// Frames that are received in one portion: a pause waits for one portion.
const GO_FRAMES: usize = 24;

/// A network interface.
pub(crate) struct Net {
    format: String,
    mac: MacAddress,
    /// What it is connected to, if anything.
    link: Option<Arc<Link>>,
    /// The link status that the guest sees.
    up: bool,
    /// The guest has read another address: its link is to go down and up, so that it reads the address again.
    bounce: bool,
    /// Wakes the receiving thread: there may be buffers again.
    wake: Arc<OwnedFd>,
}

/// The result of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There may be more frames.
    Going,
    /// No frame waits.
    Idle,
    /// The driver has provided no buffer: the receiving thread is woken when it does.
    Full,
    /// The other side is gone.
    Closed,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    /// The address that the driver has read.
    mac: MacAddress,
    up: bool,
}

impl Net {
    /// The interface number `index` of a machine, connected to `link`.
    pub(crate) fn new(index: usize, mac: MacAddress, link: Option<Arc<Link>>, wake: Arc<OwnedFd>) -> Self {
        let format = format!("virtio-net/1:n{index}");
        Self { format, mac, up: link.is_some(), link, bounce: false, wake }
    }

    /// Passes frames to the driver, as long as there are frames and buffers.
    pub(crate) fn receive(&mut self, queues: &mut Queues<'_>) -> Result<Progress, ProtocolViolation> {
        let Some(link) = &self.link else { return Ok(Progress::Idle) };
        let mut bytes = [0; FRAME_BYTES_MAX];
        for _ in 0..GO_FRAMES {
            let Some(chain) = queues.pop(RECEIVE)? else { return Ok(Progress::Full) };
            let mut writer = chain.writer();
            let length = match link.receive(&mut bytes) {
                Received::Frame(length)
                    if length >= HEADER_BYTES && writer.left() >= PREFIX_BYTES + length =>
                {
                    length
                }
                Received::Frame(_) => {
                    queues.put_back(RECEIVE);
                    continue;
                }
                Received::Nothing => {
                    queues.put_back(RECEIVE);
                    return Ok(Progress::Idle);
                }
                Received::Closed => {
                    queues.put_back(RECEIVE);
                    return Ok(Progress::Closed);
                }
            };
            let mut prefix = [0; PREFIX_BYTES];
            // One buffer, in the last two bytes.
            prefix[PREFIX_BYTES - 2] = 1;
            let mut written = writer.write(queues.memory(), &prefix)?;
            written += writer.write(queues.memory(), &bytes[..length])?;
            queues.push(RECEIVE, &chain, written)?;
        }
        Ok(Progress::Going)
    }

    /// Drops the frames that wait to be received: there is no driver.
    pub(crate) fn mark_lost(&self) -> Progress {
        match self.link.as_ref().map(|link| link.drain()) {
            Some(Received::Closed) => Progress::Closed,
            _ => Progress::Idle,
        }
    }

    /// Connects or disconnects.
    pub(crate) fn plug(&mut self, link: Option<Arc<Link>>) {
        self.link = link;
    }

    /// The link status, if the guest has seen another one.
    pub(crate) fn link_change(&self) -> Option<bool> {
        let up = self.link.is_some() && !self.bounce;
        (up != self.up).then_some(up)
    }

    /// The guest is notified.
    pub(crate) fn set_up(&mut self, up: bool) {
        self.up = up;
    }

    /// Its address, and whether the guest sees its link up.
    pub(crate) fn status(&self) -> NetStatus {
        NetStatus { mac: self.mac, up: self.up }
    }

    /// Whether the link is down only so that it can go up again.
    pub(crate) fn is_bouncing(&self) -> bool {
        self.bounce
    }

    /// It was down for long enough.
    pub(crate) fn end_bounce(&mut self) {
        self.bounce = false;
    }

    fn transmit(&self, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        let mut bytes = [0; FRAME_BYTES_MAX];
        while let Some(chain) = queues.pop(TRANSMIT)? {
            let mut reader = chain.reader();
            reader.skip(PREFIX_BYTES);
            if (HEADER_BYTES..=FRAME_BYTES_MAX).contains(&reader.left()) {
                let length = reader.read(queues.memory(), &mut bytes)?;
                if let Some(link) = &self.link {
                    link.send(&bytes[..length]);
                }
            }
            queues.push(TRANSMIT, &chain, 0)?;
        }
        Ok(())
    }

    fn wake(&self) {
        // Fails only when the counter is full: then it is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn format(&self) -> &str {
        &self.format
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MTU
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.bytes());
        let status = if self.up { VIRTIO_NET_S_LINK_UP } else { 0 };
        #[expect(clippy::cast_possible_truncation, reason = "a flag of 16 bits, and a small constant")]
        {
            config[6..8].copy_from_slice(&(status as u16).to_le_bytes());
            config[10..].copy_from_slice(&(MTU_BYTES as u16).to_le_bytes());
        }
        let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
        for (into, from) in data.iter_mut().zip(from) {
            *into = *from;
        }
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), ProtocolViolation> {
        if queue == TRANSMIT {
            return self.transmit(queues);
        }
        self.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.wake();
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        encode("a network interface", &Saved { mac: self.mac, up: self.up })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let saved: Saved = decode("a network interface", bytes)?;
        self.up = saved.up;
        self.bounce = saved.mac != self.mac;
        // Frames in transit belong to the time that was undone.
        self.mark_lost();
        self.wake();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(mac: &str) -> Net {
        let (_, ours) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let link = Link::open(&crate::kvm::net::link::NetBackend::Open(Arc::new(ours.into()))).unwrap();
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        Net::new(0, mac.parse().unwrap(), Some(Arc::new(link)), Arc::new(wake))
    }

    #[test]
    fn a_state_of_another_address_takes_the_link_down_and_up() {
        let (was, mut is) = (net("02:00:00:00:00:01"), net("02:00:00:00:00:02"));
        is.restore(&is.save().unwrap()).unwrap();
        assert_eq!(is.link_change(), None, "its own state is no news");
        is.restore(&was.save().unwrap()).unwrap();
        assert_eq!((is.is_bouncing(), is.link_change()), (true, Some(false)));
        is.set_up(false);
        is.end_bounce();
        assert_eq!(is.link_change(), Some(true));
        let mut config = [0; 8];
        is.read_config(0, &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, 2, 0, 0]);
        assert!(is.restore(b"no state").is_err());
    }
}
