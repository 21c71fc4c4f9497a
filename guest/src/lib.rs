//! The types and traits that every part of Retrovisor uses: guest-physical addresses, pages, memory slots, vCPU
//! registers, machine state, and the interface of a driver of virtual machines.
//!
//! There is no I/O in this crate. Three drivers implement [`Machine`]: a KVM microVM (own memory, dirty log, rollback
//! in place), stock QEMU (a shared memory file, opaque device state), and a machine in memory for tests.
#![forbid(unsafe_code)]

mod address;
mod capabilities;
mod clock;
mod disk;
mod disk_io;
mod driver;
mod error;
mod event;
pub mod fact;
mod identity;
mod launch_spec;
mod layout;
mod mac_address;
mod machine;
mod memory_io;
mod name;
mod network;
mod page;
mod page_set;
mod process;
mod registers;
mod run_state;
mod state;
mod state_io;
mod view;
mod vm;

pub use address::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};
pub use capabilities::Capabilities;
pub use clock::ClockPolicy;
pub use disk::{
    BLOCK_SIZE, BaseFile, BlockContent, BlockRun, DiskBase, DiskBlocks, DiskChanges, DiskShape,
    RUN_BLOCKS_MAX, RunContent,
};
pub use disk_io::DiskIo;
pub use driver::{Attach, Driver, DriverFeatures, Drivers, Launch, Lifespan, Start};
pub use error::{MachineError, MemoryError};
pub use event::GuestEvent;
pub use identity::{Accelerator, MachineIdentity};
pub use launch_spec::{DRIVER_DEFAULT, LaunchSpec};
pub use layout::{LayoutError, MemoryLayout, MemorySlot};
pub use mac_address::MacAddress;
pub use machine::Machine;
pub use memory_io::MemoryIo;
pub use name::{NAME_BYTES_MAX, NameError, check_name};
pub use network::{Interface, Network};
pub use page::{LINE_SIZE, Page, PageContent, ZERO_PAGE, differing_lines, is_zero};
pub use page_set::PageSet;
pub use process::ProcessIdentity;
pub use registers::{DescriptorTable, VcpuRegisters};
pub use run_state::RunState;
pub use state::{DiskState, MachineState, StateSection};
pub use state_io::StateIo;
pub use view::{MemoryView, PageToken};
pub use vm::{ControlPort, DirtyFinder, Vm};
