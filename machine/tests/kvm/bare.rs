//! Common parts of the tests with bare guests.

use std::time::{Duration, Instant};

use retrovisor_guest::{Gpa, Machine, MachineError, MemoryLayout, MemorySlot};
use retrovisor_machine::kvm::bare::{self, Writing};
use retrovisor_machine::kvm::{Boot, KvmConfig, KvmMachine, MemorySource};

pub(crate) use retrovisor_machine::kvm::bare::MAIL;

/// Below the hole at 3 GiB and above 4 GiB.
pub(crate) fn split_layout() -> MemoryLayout {
    let slot = |gpa, length_bytes| MemorySlot { gpa: Gpa(gpa), length_bytes };
    MemoryLayout::new(vec![slot(0, 3 << 30), slot(4 << 30, 1 << 30)]).unwrap()
}

pub(crate) fn config(layout: MemoryLayout, vcpus: u32, boot: Boot) -> KvmConfig {
    KvmConfig {
        name: "bare".into(),
        layout,
        memory: MemorySource::Fresh,
        vcpus,
        boot,
        disks: Vec::new(),
        nets: Vec::new(),
        channel: false,
        paused: true,
    }
}

/// The guest; `None`, with a message, without KVM.
pub(crate) fn launch(layout: MemoryLayout, vcpus: u32) -> Option<KvmMachine> {
    launch_boot(bare::writer(), layout, vcpus)
}

/// Like [`launch`], with code of the caller, which is at 1 MiB and one page.
pub(crate) fn launch_image(image: Vec<u8>, layout: MemoryLayout, vcpus: u32) -> Option<KvmMachine> {
    launch_boot(Boot::Flat { image, at: Gpa(MAIL.0 + 0x1000) }, layout, vcpus)
}

/// Like [`launch`], with another guest.
pub(crate) fn launch_boot(boot: Boot, layout: MemoryLayout, vcpus: u32) -> Option<KvmMachine> {
    match KvmMachine::launch(&config(layout, vcpus, boot)) {
        Ok(machine) => Some(machine),
        Err(error @ (MachineError::Config { .. } | MachineError::Unsupported { .. })) => {
            eprintln!("SKIPPED: no KVM for a bare guest: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Sets the guest's orders; it must be paused.
pub(crate) fn assign(machine: &mut dyn Machine, first: Gpa, pages: u64, stride_bytes: u64) {
    bare::assign(machine, &Writing { first, pages, stride_bytes, idle_turns: 0, rounds: 0 }).unwrap();
}

/// Rounds that a vCPU has done.
pub(crate) fn rounds(machine: &dyn Machine, vcpu: u64) -> u64 {
    bare::rounds(machine, vcpu).unwrap()
}

/// Waits until the running guest's vCPUs have each done this many further rounds.
pub(crate) fn wait_rounds(machine: &dyn Machine, vcpus: u64, more: u64) {
    let before: Vec<_> = (0..vcpus).map(|vcpu| rounds(machine, vcpu)).collect();
    let began = Instant::now();
    while (0..vcpus).zip(&before).any(|(vcpu, before)| rounds(machine, vcpu) < before + more) {
        assert!(began.elapsed() < Duration::from_secs(30), "the guest does nothing");
        std::thread::yield_now();
    }
}
