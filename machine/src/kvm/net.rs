//! The machine's networks: a hub between machines, or a tap of the host.

pub(super) mod hub;
pub(super) mod link;
pub(super) mod receiver;
pub(super) mod status;
pub(super) mod tap;

/// Bytes of an Ethernet header: two addresses and a type.
pub(super) const HEADER_BYTES: usize = 14;
/// The longest frame: header, one VLAN tag, 1500 bytes. No offloads are negotiated, so longer frames are not sent.
pub(super) const FRAME_BYTES_MAX: usize = HEADER_BYTES + 4 + MTU_BYTES;
/// Bound on a frame's payload.
pub(super) const MTU_BYTES: usize = 1500;
