use kvm_bindings::{
    KVM_MP_STATE_HALTED, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use retrovisor_guest::{ClockPolicy, DescriptorTable, MachineError, VcpuRegisters};
use serde::{Deserialize, Serialize};

use super::msrs::{self, MsrList};
use super::tsc;
use crate::kvm::host::failed;

const TSC: u32 = 0x10;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const LSTAR: u32 = 0xc000_0082;
/// Bytes of `kvm_xsave` without its flexible part.
const XSAVE_BYTES: usize = size_of::<kvm_xsave>();

/// Everything of one vCPU.
#[derive(Serialize, Deserialize)]
pub(crate) struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// The XSAVE area in 32-bit words, as long as this host's KVM says.
    xsave: Vec<u32>,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads all of it. `MP_STATE` comes first and the events last: reading the former settles the latter.
    pub(crate) fn save(vcpu: &VcpuFd, list: &MsrList, xsave_bytes: usize) -> Result<Self, MachineError> {
        let mp_state = vcpu.get_mp_state().map_err(failed("saving the run state of a vCPU"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(failed("saving registers"))?,
            sregs: vcpu.get_sregs().map_err(failed("saving system registers"))?,
            xsave: get_xsave(vcpu, xsave_bytes)?,
            xcrs: vcpu.get_xcrs().map_err(failed("saving extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(failed("saving debug registers"))?,
            lapic: vcpu.get_lapic().map_err(failed("saving a local interrupt controller"))?,
            msrs: list.read(vcpu)?,
            events: vcpu.get_vcpu_events().map_err(failed("saving pending events"))?,
        })
    }

    /// Puts all of it back, in the order that KVM needs.
    pub(crate) fn restore(
        &self,
        vcpu: &VcpuFd,
        xsave_bytes: usize,
        clock: ClockPolicy,
    ) -> Result<(), MachineError> {
        vcpu.set_mp_state(self.mp_state).map_err(failed("putting the run state of a vCPU back"))?;
        vcpu.set_regs(&self.regs).map_err(failed("putting registers back"))?;
        vcpu.set_sregs(&self.sregs).map_err(failed("putting system registers back"))?;
        set_xsave(vcpu, &self.xsave, xsave_bytes)?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed("putting extended control registers back"))?;
        vcpu.set_debug_regs(&self.debug).map_err(failed("putting debug registers back"))?;
        vcpu.set_lapic(&self.lapic).map_err(failed("putting a local interrupt controller back"))?;
        if clock == ClockPolicy::StandStill {
            self.restore_tsc(vcpu)?;
        }
        msrs::write(vcpu, self.msrs.iter().copied().filter(|(index, _)| *index != TSC))?;
        vcpu.set_vcpu_events(&self.events).map_err(failed("putting pending events back"))
    }

    /// The counter goes on from where it stood.
    fn restore_tsc(&self, vcpu: &VcpuFd) -> Result<(), MachineError> {
        let Some(wanted) = self.msr(TSC) else { return Ok(()) };
        let mut now = kvm_bindings::Msrs::from_entries(&[kvm_bindings::kvm_msr_entry {
            index: TSC,
            ..kvm_bindings::kvm_msr_entry::default()
        }])
        .map_err(|error| MachineError::Driver {
            doing: "asking for the time-stamp counter".into(),
            message: format!("{error:?}"),
        })?;
        vcpu.get_msrs(&mut now).map_err(failed("reading the time-stamp counter"))?;
        let now = now.as_slice().first().map_or(0, |entry| entry.data);
        tsc::shift(vcpu, wanted.wrapping_sub(now))
    }

    fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|(known, _)| *known == index).map(|(_, value)| *value)
    }

    /// What a reader of memory needs of it.
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
    // SAFETY: the length of the flexible part, which is what must not be changed, stays as it is.
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
