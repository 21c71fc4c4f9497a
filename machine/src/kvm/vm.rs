use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_irqchip, kvm_pit_channel_state, kvm_pit_config,
    kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use retrovisor_guest::{ClockPolicy, MachineError, MemoryLayout, MemoryView as _, PageSet};
use serde::{Deserialize, Serialize};

use super::dirty_log::DirtyLog;
use super::host::failed;
use super::interrupt::VmLine;
use super::vcpu::tsc;
use crate::ram::Ram;

/// Three pages that KVM needs on Intel processors, outside memory.
const TSS: usize = 0xfffb_d000;
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The virtual machine in KVM: memory, interrupt controllers, timer, clock.
pub(super) struct Vm {
    fd: Arc<VmFd>,
    layout: MemoryLayout,
    log: DirtyLog,
}

/// Its state.
#[derive(Serialize, Deserialize)]
pub(super) struct VmState {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
    /// The host's time-stamp counter at that instant, and its wall clock in nanoseconds since 1970.
    host_tsc: u64,
    host_ns: u64,
}

impl VmState {
    /// Names the parts that differ, except those that time changes.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        const NAMES: [&str; 3] = ["first PIC", "second PIC", "I/O APIC"];
        let chips = self.chips.iter().zip(&other.chips).zip(NAMES);
        let mut differing: Vec<_> =
            chips.filter(|((left, right), _)| image(left) != image(right)).map(|(_, name)| name).collect();
        // The load times of counts are in the host's time.
        let channel = |of: &kvm_pit_channel_state| kvm_pit_channel_state { count_load_time: 0, ..*of };
        if !self.pit.channels.iter().map(channel).eq(other.pit.channels.iter().map(channel)) {
            differing.push("timer");
        }
        differing
    }
}

/// All bytes of a chip's state.
fn image(chip: &kvm_irqchip) -> &[u8; 512] {
    // SAFETY: all members of the union are plain data within these 512 bytes, which KVM wrote as a whole.
    unsafe { &*(&raw const chip.chip.dummy).cast() }
}

impl Vm {
    /// Memory, interrupt controllers and timer, no vCPU.
    ///
    /// Memory comes first: afterwards, the kernel would wait for several milliseconds before it takes it.
    pub(super) fn new(kvm: &Kvm, ram: &Ram) -> Result<Self, MachineError> {
        let fd = kvm.create_vm().map_err(failed("creating a virtual machine"))?;
        map(&fd, ram)?;
        fd.set_tss_address(TSS).map_err(failed("placing the task state segment"))?;
        fd.create_irq_chip().map_err(failed("creating the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        fd.create_pit2(pit).map_err(failed("creating the timer"))?;
        Ok(Self { fd: Arc::new(fd), layout: ram.layout().clone(), log: DirtyLog::default() })
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// A line into the interrupt controllers.
    pub(super) fn line(&self, number: u32) -> VmLine {
        VmLine::new(Arc::clone(&self.fd), number)
    }

    /// Adds the frames that vCPUs have written since the last call.
    pub(super) fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let mut first = 0;
        for (number, slot) in (0..).zip(self.layout.slots()) {
            let words = self.log.read(&self.fd, number, slot.pages())?;
            into.insert_words(first, words);
            first += slot.pages();
        }
        Ok(())
    }

    pub(super) fn save(&self) -> Result<VmState, MachineError> {
        let mut chips = Vec::with_capacity(CHIPS.len());
        for chip_id in CHIPS {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            self.fd.get_irqchip(&mut chip).map_err(failed("saving an interrupt controller"))?;
            chips.push(chip);
        }
        Ok(VmState {
            chips,
            pit: self.fd.get_pit2().map_err(failed("saving the timer"))?,
            clock: self.fd.get_clock().map_err(failed("saving the clock"))?,
            host_tsc: tsc::host(),
            host_ns: wall_clock_ns(),
        })
    }

    /// Sets the clock, before any vCPU runs. Returns the ticks of the host's time-stamp counter since the state was
    /// taken that the guest's must not advance by.
    pub(super) fn restore_clock(
        &self,
        state: &VmState,
        policy: ClockPolicy,
        tsc_khz: u32,
    ) -> Result<u64, MachineError> {
        let gap = tsc::host().wrapping_sub(state.host_tsc);
        let mut clock = kvm_clock_data { flags: 0, ..state.clock };
        let mut jump = 0;
        if policy == ClockPolicy::JumpToNow {
            // The host's counter would do, if the host had not restarted since.
            let missed_ns = wall_clock_ns().saturating_sub(state.host_ns);
            clock.clock = clock.clock.saturating_add(missed_ns);
            jump = u128::from(missed_ns) * u128::from(tsc_khz) / 1_000_000;
        }
        self.fd.set_clock(&clock).map_err(failed("setting the guest's clock"))?;
        #[expect(clippy::cast_possible_truncation, reason = "the counter has 64 bits and wraps")]
        Ok(gap.wrapping_sub(jump as u64))
    }

    /// Whether the PC's timer, which continues while vCPUs are stopped, runs neither now nor in the state.
    pub(super) fn is_quiet(&self, state: &VmState) -> Result<bool, MachineError> {
        /// Nobody has set the channel's mode yet.
        const OFF: u8 = 0xff;
        let now = self.fd.get_pit2().map_err(failed("looking at the timer"))?;
        Ok([&now, &state.pit].into_iter().all(|pit| pit.channels[0].mode == OFF))
    }

    /// Restores interrupt controllers and timer: after the vCPUs' local APICs, which they may address.
    pub(super) fn restore_chips(&self, state: &VmState) -> Result<(), MachineError> {
        for chip in &state.chips {
            self.fd.set_irqchip(chip).map_err(failed("putting an interrupt controller back"))?;
        }
        self.fd.set_pit2(&state.pit).map_err(failed("putting the timer back"))
    }
}

/// Gives the guest its memory, with a log of its writes.
fn map(fd: &VmFd, ram: &Ram) -> Result<(), MachineError> {
    for (number, (slot, host)) in (0..).zip(ram.mappings()) {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: slot.gpa.0,
            memory_size: slot.length_bytes,
            userspace_addr: host as u64,
        };
        // SAFETY: `host` is a mapping of `length_bytes` of the `Ram` that the machine keeps longer than this VM.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(failed(format!("giving the guest its memory at {}", slot.gpa)))?;
    }
    Ok(())
}

fn wall_clock_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
