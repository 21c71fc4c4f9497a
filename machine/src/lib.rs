//! Drivers of virtual machines: stock QEMU, memory only.
