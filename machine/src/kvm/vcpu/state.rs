use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use retrovisor_guest::{DescriptorTable, MachineError, VcpuRegisters};
use serde::{Deserialize, Serialize};

use super::msrs::{self, TSC_DEADLINE};
use super::shape::Shape;
use super::tsc::{self, Tsc};
use crate::kvm::host::failed;

const TSC: u32 = 0x10;
/// The MSR with the address of the guest's paravirtual clock; bit 0: enabled.
const KVM_CLOCK: u32 = 0x4b56_4d01;
const KVM_CLOCK_OLD: u32 = 0x12;
/// The timer's initial count in the local APIC; 0: stopped.
const LAPIC_TIMER_INITIAL: usize = 0x380;
const LAPIC_TIMER_CURRENT: usize = 0x390;
/// The reset vector.
const RESET_RIP: u64 = 0xfff0;
const CR0_PE: u64 = 1;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const LSTAR: u32 = 0xc000_0082;
/// Bytes of `kvm_xsave` without its flexible part.
const XSAVE_BYTES: usize = size_of::<kvm_xsave>();

/// Everything of one vCPU.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub(super) mp_state: kvm_mp_state,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) xcrs: kvm_xcrs,
    pub(super) debug: kvm_debugregs,
    pub(super) lapic: kvm_lapic_state,
    /// The XSAVE area in 32-bit words, with the length that this host's KVM reports.
    pub(super) xsave: Vec<u32>,
    pub(super) msrs: Vec<(u32, u64)>,
    pub(super) events: kvm_vcpu_events,
    /// The offset of its time-stamp counter from the host's.
    pub(super) tsc_offset: u64,
}

impl VcpuState {
    /// Reads all of it. `MP_STATE` comes first and the events last, because reading the former settles the latter.
    /// Registers in the page that KVM shares with this process are not read again, unless another vCPU may have changed
    /// them since the exit.
    pub(super) fn save(vcpu: &VcpuFd, shape: &Shape, tsc: &mut Tsc) -> Result<Self, MachineError> {
        let mp_state = vcpu.get_mp_state().map_err(failed("saving the run state of a vCPU"))?;
        let left = vcpu.sync_regs();
        // Another vCPU may have started this one since its exit.
        let is_asleep = !matches!(mp_state.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED);
        let is_reset = is_asleep || left.regs.rip == RESET_RIP && left.sregs.cr0 & CR0_PE == 0;
        let (regs, sregs) = if is_reset {
            (
                vcpu.get_regs().map_err(failed("saving registers"))?,
                vcpu.get_sregs().map_err(failed("saving system registers"))?,
            )
        } else {
            (left.regs, left.sregs)
        };
        let xsave = get_xsave(vcpu, shape.xsave_bytes)?;
        let xcrs = vcpu.get_xcrs().map_err(failed("saving extended control registers"))?;
        let debug = vcpu.get_debug_regs().map_err(failed("saving debug registers"))?;
        let lapic = vcpu.get_lapic().map_err(failed("saving a local interrupt controller"))?;
        let before = tsc::host();
        let msrs = shape.msrs.read(vcpu)?;
        let after = tsc::host();
        let events = if is_reset || shape.vcpus > 1 {
            // Another vCPU may have sent it a non-maskable interrupt.
            vcpu.get_vcpu_events().map_err(failed("saving pending events"))?
        } else {
            left.events
        };
        let mut state =
            Self { mp_state, regs, sregs, xcrs, debug, lapic, xsave, msrs, events, tsc_offset: 0 };
        if let (true, Some(counter)) = (shape.moves_tsc, state.msr(TSC)) {
            state.tsc_offset = tsc.offset(vcpu, counter, before..=after)?;
        }
        Ok(state)
    }

    /// Restores all of it, in the order that KVM needs.
    pub(super) fn restore(
        &self,
        vcpu: &mut VcpuFd,
        shape: &Shape,
        tsc: &mut Tsc,
        host_tsc_gap: u64,
    ) -> Result<(), MachineError> {
        for part in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            vcpu.clear_sync_dirty_reg(part);
        }
        vcpu.set_mp_state(self.mp_state).map_err(failed("putting the run state of a vCPU back"))?;
        vcpu.set_regs(&self.regs).map_err(failed("putting registers back"))?;
        vcpu.set_sregs(&self.sregs).map_err(failed("putting system registers back"))?;
        set_xsave(vcpu, &self.xsave, shape.xsave_bytes)?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed("putting extended control registers back"))?;
        vcpu.set_debug_regs(&self.debug).map_err(failed("putting debug registers back"))?;
        vcpu.set_lapic(&self.lapic).map_err(failed("putting a local interrupt controller back"))?;
        self.restore_tsc(vcpu, shape, tsc, host_tsc_gap)?;
        msrs::write(vcpu, self.msrs.iter().copied().filter(|(index, _)| *index != TSC))?;
        vcpu.set_vcpu_events(&self.events).map_err(failed("putting pending events back"))?;
        self.tell_that_it_stood(vcpu);
        Ok(())
    }

    /// The same for a vCPU with state `present`, in a machine that has not run since: equal parts are not written.
    /// Registers and events are set with the next entry into the guest. `false`: this is not possible, and nothing was
    /// done.
    pub(super) fn restore_over(
        &self,
        present: &Self,
        vcpu: &mut VcpuFd,
        shape: &Shape,
        tsc: &mut Tsc,
        host_tsc_gap: u64,
        is_quiet: bool,
    ) -> Result<bool, MachineError> {
        let runs =
            |state: &Self| matches!(state.mp_state.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED);
        // System registers include the mode of the local APIC, which must be right before its state is set.
        if !runs(self) || !runs(present) || self.sregs.apic_base != present.sregs.apic_base {
            return Ok(false);
        }
        if self.mp_state != present.mp_state {
            vcpu.set_mp_state(self.mp_state).map_err(failed("putting the run state of a vCPU back"))?;
        }
        if self.xsave != present.xsave {
            set_xsave(vcpu, &self.xsave, shape.xsave_bytes)?;
        }
        if self.xcrs != present.xcrs {
            vcpu.set_xcrs(&self.xcrs).map_err(failed("putting extended control registers back"))?;
        }
        if self.debug != present.debug {
            vcpu.set_debug_regs(&self.debug).map_err(failed("putting debug registers back"))?;
        }
        if !is_quiet || self.has_timer() || present.has_timer() || self.lapic.regs != present.lapic.regs {
            vcpu.set_lapic(&self.lapic).map_err(failed("putting a local interrupt controller back"))?;
        }
        self.restore_tsc(vcpu, shape, tsc, host_tsc_gap)?;
        // Both lists have KVM's order. A deadline is compared with the counter, which has changed.
        let has_deadline = |state: &Self| state.msr(TSC_DEADLINE).is_some_and(|deadline| deadline != 0);
        let writes_deadline = has_deadline(self) || has_deadline(present);
        let entries = self.msrs.iter().copied().enumerate().filter(|(at, entry)| match entry.0 {
            TSC => false,
            TSC_DEADLINE => writes_deadline,
            _ => present.msrs.get(*at) != Some(entry),
        });
        msrs::write(vcpu, entries.map(|(_, entry)| entry))?;
        let put = vcpu.sync_regs_mut();
        (put.regs, put.sregs, put.events) = (self.regs, self.sregs, self.events);
        for part in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            vcpu.set_sync_dirty_reg(part);
        }
        self.tell_that_it_stood(vcpu);
        Ok(true)
    }

    /// Whether its local timer has state that is not in its registers.
    fn has_timer(&self) -> bool {
        let register = |at: usize| self.lapic.regs[at..at + 4].iter().any(|byte| *byte != 0);
        register(LAPIC_TIMER_INITIAL) || self.msr(TSC_DEADLINE).is_some_and(|deadline| deadline != 0)
    }

    /// The counter continues at the saved value, or jumps. `host_tsc_gap` is the number of ticks of the host's counter
    /// meanwhile that it must not advance by.
    fn restore_tsc(
        &self,
        vcpu: &VcpuFd,
        shape: &Shape,
        tsc: &mut Tsc,
        host_tsc_gap: u64,
    ) -> Result<(), MachineError> {
        if shape.moves_tsc { tsc.set(vcpu, self.tsc_offset.wrapping_sub(host_tsc_gap)) } else { Ok(()) }
    }

    /// Notifies the guest's watchdogs that it was paused.
    fn tell_that_it_stood(&self, vcpu: &VcpuFd) {
        let is_on = |index| self.msr(index).is_some_and(|at| at & 1 == 1);
        if is_on(KVM_CLOCK) || is_on(KVM_CLOCK_OLD) {
            // Guests that have just disabled the paravirtual clock refuse this.
            let _ = vcpu.kvmclock_ctrl();
        }
    }

    /// Names the parts that differ, except those that time changes.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let registers = |state: &Self| {
            let mut registers = state.lapic.regs;
            registers[LAPIC_TIMER_CURRENT..LAPIC_TIMER_CURRENT + 4].fill(0);
            registers
        };
        let parts = [
            ("run state", self.mp_state == other.mp_state),
            ("registers", self.regs == other.regs),
            ("system registers", self.sregs == other.sregs),
            ("extended control registers", self.xcrs == other.xcrs),
            ("debug registers", self.debug == other.debug),
            ("local interrupt controller", registers(self) == registers(other)),
            ("extended register area", self.xsave == other.xsave),
            ("events", self.events == other.events),
            ("the list of MSRs", self.msrs.len() == other.msrs.len()),
        ];
        let parts = parts.into_iter().filter(|(_, is_same)| !is_same).map(|(part, _)| part.to_owned());
        let msrs = self.msrs.iter().zip(&other.msrs);
        parts
            .chain(
                msrs.filter(|(left, right)| left != right && left.0 != TSC)
                    .map(|(left, right)| format!("MSR {:#x}: {:#x}, {:#x}", left.0, left.1, right.1)),
            )
            .collect()
    }

    fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|(known, _)| *known == index).map(|(_, value)| *value)
    }

    /// The registers for introspection.
    pub(crate) fn registers(&self) -> VcpuRegisters {
        let (r, s) = (&self.regs, &self.sregs);
        let table =
            |table: &kvm_bindings::kvm_dtable| DescriptorTable { base: table.base, limit: table.limit };
        VcpuRegisters {
            general: [
                r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
                r.r13, r.r14, r.r15,
            ],
            rip: r.rip,
            rflags: r.rflags,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
            fs_base: s.fs.base,
            gs_base: s.gs.base,
            privilege: s.ss.dpl,
            halted: self.mp_state.mp_state == KVM_MP_STATE_HALTED,
            idt: table(&s.idt),
            gdt: table(&s.gdt),
            kernel_gs_base: self.msr(KERNEL_GS_BASE),
            lstar: self.msr(LSTAR),
        }
    }
}

fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u32>, MachineError> {
    let mut area = new_xsave(bytes)?;
    // SAFETY: the area is as long as KVM said that it fills (KVM_CAP_XSAVE2).
    unsafe { vcpu.get_xsave2(&mut area) }.map_err(failed("saving the extended register area"))?;
    let mut words = area.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(area.as_slice());
    Ok(words)
}

fn set_xsave(vcpu: &VcpuFd, words: &[u32], bytes: usize) -> Result<(), MachineError> {
    if words.len() * 4 != bytes {
        return Err(MachineError::Mismatch {
            what: "the size of the extended register area".into(),
            expected: format!("{} bytes", words.len() * 4),
            found: format!("{bytes} bytes"),
        });
    }
    let mut area = new_xsave(bytes)?;
    let (fixed, rest) = words.split_at(XSAVE_BYTES / 4);
    // SAFETY: the length of the flexible part, which must not be changed, is not.
    unsafe { area.as_mut_fam_struct() }.xsave.region.copy_from_slice(fixed);
    area.as_mut_slice().copy_from_slice(rest);
    // SAFETY: the area is as long as KVM said that it reads (KVM_CAP_XSAVE2).
    unsafe { vcpu.set_xsave2(&area) }.map_err(failed("putting the extended register area back"))
}

fn new_xsave(bytes: usize) -> Result<Xsave, MachineError> {
    Xsave::new(bytes.saturating_sub(XSAVE_BYTES).div_ceil(4)).map_err(|error| MachineError::Driver {
        doing: format!("making room for {bytes} bytes of extended registers"),
        message: format!("{error:?}"),
    })
}
