use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Two lengths, little endian: of the head (postcard) and of the body (plain bytes).
const PREFIX_BYTES: usize = 8;
/// Bound on the head. The longest real one has the configuration of a machine that is started.
pub(super) const HEAD_BYTES_MAX: usize = 1 << 20;
/// Bound on the descriptors of one message; the kernel closes further ones. A machine with the maximum number of
/// interfaces needs fewer.
const FDS_MAX: usize = 24;
/// Bytes read from the kernel at once; most messages fit.
const READ_BYTES: usize = 64 << 10;

/// One end of the connection: messages with a head of structured data, a body of bytes, and descriptors.
pub(super) struct Channel {
    stream: UnixStream,
    /// Time limit for a message, if there is one.
    patience: Option<Duration>,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

/// A received message.
pub(super) struct Received<T> {
    pub(super) head: T,
    pub(super) fds: Vec<OwnedFd>,
    /// The range of the body in the channel's buffer.
    pub(super) body: Range<usize>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream, patience: Option<Duration>) -> io::Result<Self> {
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        Ok(Self { stream, patience, out: Vec::new(), buffer: vec![0; READ_BYTES] })
    }

    /// Changes the time limit for a message.
    pub(super) fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        self.patience = Some(patience);
        Ok(())
    }

    /// Sends a message whose body is these pieces, one after another.
    pub(super) fn send(
        &mut self,
        head: &impl Serialize,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.out.clear();
        self.out.resize(PREFIX_BYTES, 0);
        self.out = postcard::to_extend(head, std::mem::take(&mut self.out)).map_err(io::Error::other)?;
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| invalid("a message is too long"));
        let head_bytes = length(self.out.len() - PREFIX_BYTES)?;
        let body_bytes = length(body.iter().map(|piece| piece.len()).sum())?;
        self.out[..4].copy_from_slice(&head_bytes.to_le_bytes());
        self.out[4..PREFIX_BYTES].copy_from_slice(&body_bytes.to_le_bytes());
        for piece in body {
            self.out.extend_from_slice(piece);
        }
        let sent = if fds.is_empty() {
            0
        } else {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(invalid("too many descriptors for one message"));
            }
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(&self.out)], &mut control, SendFlags::NOSIGNAL)?
        };
        (&self.stream).write_all(&self.out[sent..])
    }

    /// Waits for a message whose body has at most `body_bytes_max` bytes. `None`: the other end closed the connection
    /// between messages.
    pub(super) fn receive<T: DeserializeOwned>(
        &mut self,
        body_bytes_max: usize,
    ) -> io::Result<Option<Received<T>>> {
        let began = Instant::now();
        let mut fds = Vec::new();
        let mut have = 0;
        while have < PREFIX_BYTES {
            let count = self.some(have, &mut fds)?;
            if count == 0 {
                return if have == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            have += count;
            self.check_time(began)?;
        }
        let number = |at: usize, bytes: &[u8]| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            usize::try_from(u32::from_le_bytes(word)).unwrap_or(usize::MAX)
        };
        let (head, body) = (number(0, &self.buffer), number(4, &self.buffer));
        if head > HEAD_BYTES_MAX || body > body_bytes_max {
            return Err(invalid(&format!("a message announces {head} + {body} bytes")));
        }
        let total = PREFIX_BYTES + head + body;
        if have > total {
            return Err(invalid("a message came with more than it announced"));
        }
        if self.buffer.len() < total {
            self.buffer.resize(total, 0);
        }
        while have < total {
            let count = (&self.stream).read(&mut self.buffer[have..total]).map_err(in_time)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += count;
            self.check_time(began)?;
        }
        let head_end = PREFIX_BYTES + head;
        let (decoded, rest) =
            postcard::take_from_bytes(&self.buffer[PREFIX_BYTES..head_end]).map_err(io::Error::other)?;
        if !rest.is_empty() {
            return Err(invalid("a message has more than it should"));
        }
        Ok(Some(Received { head: decoded, fds, body: head_end..total }))
    }

    /// The body of the message that was received last.
    pub(super) fn bytes(&self, body: Range<usize>) -> &[u8] {
        self.buffer.get(body).unwrap_or_default()
    }

    /// Reads available bytes and their descriptors.
    fn some(&mut self, from: usize, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut self.buffer[from..READ_BYTES])];
        let got = loop {
            match rustix::net::recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(|errno| in_time(errno.into()))?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        fds.truncate(FDS_MAX);
        Ok(got.bytes)
    }

    fn check_time(&self, began: Instant) -> io::Result<()> {
        match self.patience {
            Some(patience) if began.elapsed() > patience => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

/// A socket's time limit is reported as "would block".
fn in_time(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours, Some(Duration::from_millis(200))).unwrap(), theirs)
    }

    #[test]
    fn head_body_and_descriptors_arrive() {
        let (mut ours, theirs) = pair();
        let mut theirs = Channel::new(theirs, None).unwrap();
        let long = vec![7; 300_000];
        let file = tempfile::tempfile().unwrap();
        let sender = std::thread::spawn(move || {
            theirs.send(&("head".to_owned(), 5_u32), &[b"ab", &long], &[file.as_fd()]).unwrap();
            theirs.send(&("next".to_owned(), 6_u32), &[], &[]).unwrap();
        });
        let first: Received<(String, u32)> = ours.receive(1 << 20).unwrap().unwrap();
        assert_eq!((&first.head.0[..], first.head.1, first.fds.len()), ("head", 5, 1));
        let body = ours.bytes(first.body.clone());
        assert_eq!((body.len(), &body[..3]), (300_002, &b"ab\x07"[..]));
        sender.join().unwrap();
        let next: Received<(String, u32)> = ours.receive(0).unwrap().unwrap();
        assert_eq!((next.head.1, next.fds.len()), (6, 0));
        assert!(ours.receive::<u32>(0).unwrap().is_none(), "the end");
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for (bytes, limit) in [
            ([u32::MAX.to_le_bytes(), [0; 4]].concat(), 0),
            ([1_u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat(), 100),
            ([[0; 4], 5_u32.to_le_bytes()].concat(), 4),
            ([1_u32.to_le_bytes(), [0; 4]].concat().into_iter().chain([0; 9]).collect(), 0),
            ([2_u32.to_le_bytes(), [0; 4]].concat().into_iter().chain([0; 2]).collect(), 0),
        ] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(&bytes).unwrap();
            assert!(ours.receive::<u8>(limit).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn nobody_waits_for_ever_nor_for_drops() {
        let (mut ours, mut theirs) = pair();
        let error = ours.receive::<u8>(0).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let drip = std::thread::spawn(move || {
            // Single bytes with pauses, each within the socket's own limit.
            for byte in 20_u32.to_le_bytes().into_iter().chain([0; 24]) {
                std::thread::sleep(Duration::from_millis(50));
                if theirs.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
        let began = Instant::now();
        let error = ours.receive::<u8>(0).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(1));
        drop(ours);
        drip.join().unwrap();
    }
}
