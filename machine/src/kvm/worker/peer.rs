use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::Uid;

/// Whether the other end is the worker's owner, or root.
pub(super) fn may(stream: &UnixStream, owner: Uid) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0 || peer.uid() == owner.as_raw())
}
