//! As much of the qcow2 format (docs/interop/qcow2.txt of QEMU) as device state and disk overlays need.

pub(super) mod header;
pub(super) mod overlay;
pub(super) mod vmstate;
