//! The parts of the qcow2 format (docs/interop/qcow2.txt of QEMU) that device state and disk overlays need.

mod cluster;
mod compressed;
pub(super) mod disk;
pub(super) mod header;
pub(super) mod overlay;
mod snapshot;
mod source;
pub(super) mod vmstate;
