//! The nouns and traits that every part of Retrovisor speaks: guest-physical addresses, pages,
//! memory slots, vCPU registers, machine state, and what a driver of virtual machines must be able to do.
//!
//! No I/O happens here. Three very different drivers stand behind [`Machine`]: an in-process KVM microVM
//! (own memory, dirty log, rollback in place), stock QEMU (a shared memory file, opaque device state,
//! restore by a new process), and a memory-only machine for tests.
#![forbid(unsafe_code)]

mod address;
mod disk;
mod driver;
mod error;
pub mod fact;
mod launch_spec;
mod layout;
mod mac_address;
mod machine;
mod name;
mod network;
mod page;
mod page_set;
mod process;
mod registers;
mod state;
mod view;
mod vm;

pub use address::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};
pub use disk::{
    BLOCK_SIZE, BaseFile, BlockContent, BlockRun, DiskBase, DiskChanges, DiskShape, RUN_BLOCKS_MAX,
    RunContent,
};
pub use driver::{Attach, Driver, DriverFeatures, Drivers, Launch, Lifespan, Start};
pub use error::{MachineError, MemoryError};
pub use launch_spec::{DRIVER_DEFAULT, LaunchSpec};
pub use layout::{LayoutError, MemoryLayout, MemorySlot};
pub use mac_address::MacAddress;
pub use machine::{Accelerator, ClockPolicy, Machine, MachineIdentity, RunState};
pub use name::{NAME_BYTES_MAX, NameError, check_name};
pub use network::{Interface, Network};
pub use page::{LINE_SIZE, Page, PageContent, ZERO_PAGE, differing_lines, is_zero};
pub use page_set::PageSet;
pub use process::ProcessIdentity;
pub use registers::{DescriptorTable, VcpuRegisters};
pub use state::{DiskState, MachineState, StateSection};
pub use view::{MemoryView, PageToken};
pub use vm::{ControlPort, DirtyFinder, Vm};
